package backoff

// The words that tell where codes don't, in lower case. They are those by which internal/verdict sees that a relay wants less mail, told apart by what there is too much of; a test in the root holds the two together.
var (
	greyPhrases = []string{"greylist", "graylist", "grey-list", "gray-list", "grey list", "gray list", "postgrey", "sqlgrey"}
	greyWords   = []string{"grey", "greyed", "grayed"}

	agePhrases = []string{
		"connection expired", "session expired", "connection too long", "session too long", "open for too long", "open too long", "connected too long",
		"connection time limit", "session time limit", "maximum session time", "maximum session duration", "maximum connection time", "maximum connection age",
		"connection age", "session duration", "connection lifetime", "session lifetime",
	}
	perConnection = []string{"in this connection", "on this connection", "over this connection", "in this session", "per connection", "per session", "per smtp session", "per smtp connection"}
	messageWords  = []string{"message", "messages", "mail", "mails", "email", "emails", "transactions", "deliveries"}

	submissionPhrases = []string{"submission quota", "submissionquota", "storedrv.submission.exception:quotaexceeded"}
	quotaPhrases      = []string{
		"sending quota", "sending limit", "send quota", "send limit", "outbound quota", "sender quota", "quota for sending",
		"credits exceeded", "out of credit", "not enough credit", "insufficient credit", "no credits", // SendGrid and others that sell by number
	}
	periodWords     = []string{"daily", "hourly", "weekly", "monthly", "per day", "per hour", "per month", "24 hours", "24-hour"}
	amountWords     = []string{"limit", "limits", "quota", "quotas", "exceeded", "exceeds", "allowance", "max", "maximum", "threshold"}
	receiverPhrases = []string{"receiv"}

	// What mailbox providers say, through whatever relay: Gmail, Yahoo, Apple; Microsoft and Yahoo by words of their own. Yahoo's TS03 is for good, as it says itself.
	providerPhrases = []string{"unusual rate", "receiving mail too quickly", "receiving email too quickly", "at a rate that", "excessive volume", "unexpected volume", "unusual volume", "suspicious volume"}
	providerWords   = []string{"rp-001", "rp-002", "rp-003", "[tss01]", "[tss02]", "[tss03]", "[tss04]", "[tss05]", "[tss09]", "[tss11]", "[ts01]", "[ts02]", "[ts04]"}
	givenUpWords    = []string{"[ts03]"}

	connectionRateWords = []string{"connection rate"} // they are opened too often; fewer at a time don't help
	connectionPhrases   = []string{
		"too many connection", "too many concurrent", "too many simultaneous", "too many smtp", "too many session", "too many open", "too many parallel",
		"connections limit", "connection limit", "concurrent connections", "concurrency limit", "thread limit", "limit on concurrent", "ports are busy",
	}
	ratePhrases = []string{
		"too many message", "too many mails", "too many email", "too many e-mail", "too many request", "too many login", "too many auth commands", "too many new tls sessions", "too many transactions",
		"too much mail", "too fast", "too quickly", "too frequent", "slow down",
		"throttling", "throttled", "rate limit", "rate-limit", "ratelimit", "rate exceeded", "smtp relay limit",
		"messages per second", "messages per minute", "emails per second", "emails per minute", "recipients per minute",
		"excessive rate", "server busy", "server too busy", "server is busy", "too busy",
	}
	rateWords = []string{"sending rate", "submission rate", "message rate"}

	recipientPhrases = []string{
		"too many recipient", "too many rcpt", "too many envelope recipient", "recipient limit", "recipients limit", "maximum number of recipients",
		"maximum recipients", "max recipients", "number of recipients exceed",
	}

	recipientRatePhrases = []string{"too many recipients from"} // with 4xx, from this client in a time: Postfix

	// We may not relay here, or the sender is not ours.
	clientPhrases = []string{
		"relaying denied", "relay access denied", "relay denied", "relaying not allowed", "relaying not permitted", "relay not permitted", "not permitted to relay", "not allowed to relay",
		"not authorized to relay", "not authorised to relay", "unable to relay", "relaying is prohibited", "relaying prohibited", "relaying disallowed", "we do not relay", "not relaying",
		"allowed rcpthosts", "authentication required", "authentication is required", "client host rejected", "client host [",
	}
	senderPhrases = []string{
		"email address is not verified", "address not verified", "a verified sender", "not a verified", "unverified sender", "unverified domain",
		"sender not verified", "sender is not verified", "domain not verified", "domain is not verified", "sender verify failed", "sender verification failed", "not owned by",
		"sender not authorized", "sender not authorised", "sender is not authorized", "sender is not authorised", "sender unauthorized", "unauthorized sender",
		"not authorized to send", "not authorised to send", "sender not allowed", "sender is not allowed", "not allowed to send", "not authorized to use",
	}
	sendAsPhrases = []string{"sendasdenied", "not allowed to send as", "permissions to send as", "permission to send as"}
)
