package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/textproto"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

// Two relays that need a password, three messages to the first for each one to the second. TLS is required, since nothing else was said.
func ExampleNew() {
	pool, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{
			{Name: "provider-a", Addr: "smtp.a.example:587", Username: "user", Password: "secret", Weight: 3},
			{Name: "provider-b", Addr: "smtp.b.example:465", Username: "user", Password: "secret"},
			{Name: "last-resort", Addr: "localhost:25", Tier: 1}, // only when neither of the others can take a message
		},
	})
	if err != nil {
		log.Fatal(err) // tells everything that is wrong with the configuration
	}
	defer pool.Close()

	for _, r := range pool.Stats().Relays {
		fmt.Println(r.Name, r.Weight, r.Tier, r.State)
	}
	// Output:
	// provider-a 3 0 starting
	// provider-b 1 0 starting
	// last-resort 1 1 starting
}

// newPool makes a pool over relays that listen on this host, as tests do.
func newPool(relays ...*smtptest.Server) *smtplb.Pool {
	var c smtplb.Config
	for i, r := range relays {
		c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprintf("relay-%d", i+1), Addr: r.Addr})
	}
	pool, err := smtplb.New(c)
	if err != nil {
		log.Fatal(err)
	}
	return pool
}

// A message made with go-mail.
func ExamplePool_Send() {
	relay := smtptest.NewServer()
	defer relay.Close()
	pool := newPool(relay)
	defer pool.Close()

	msg := mail.NewMsg()
	if err := msg.From("shop@example.com"); err != nil {
		log.Fatal(err)
	}
	if err := msg.To("customer@example.org"); err != nil {
		log.Fatal(err)
	}
	msg.Subject("Your order")
	msg.SetBodyString(mail.TypeTextPlain, "It is on its way.")

	receipt, err := pool.Send(context.Background(), msg)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(receipt)
	// Output: 1 recipient: 1 accepted; tried relay-1
}

// What to do with each class of error.
func ExamplePool_Deliver() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.Rcpt).For("gone@example.org").Reply(550, "5.1.1 No such user")
	pool := newPool(relay)
	defer pool.Close()

	deliver := func(to ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		receipt, err := pool.Deliver(ctx, &smtplb.Envelope{
			From: "shop@example.com",
			To:   to,
			Body: smtplb.Bytes([]byte("Subject: Your order\r\n\r\nIt is on its way.\r\n")),
		})
		switch {
		case err == nil:
			fmt.Println("a relay has it, for every recipient")
		case errors.Is(err, smtplb.ErrTemporary):
			fmt.Println("nobody has it: send it again later, whole")
		case errors.Is(err, smtplb.ErrPermanent):
			fmt.Println("nobody has it, and nobody ever will:", err)
		default: // ErrPartial, ErrUnknown
			for _, r := range receipt.Recipients {
				fmt.Println(r.Addr, r.Outcome, r.Reply.Code)
			}
		}
	}
	deliver("customer@example.org")
	deliver("gone@example.org")
	deliver("not an address")
	deliver("customer@example.org", "gone@example.org")

	relay.Kill()
	deliver("customer@example.org")
	// Output:
	// a relay has it, for every recipient
	// nobody has it, and nobody ever will: smtplb: failed; relay-1: rcpt: 550 5.1.1 No such user
	// nobody has it, and nobody ever will: smtplb: Envelope.To[0]: "not an address": character not allowed in a local part without quotes
	// customer@example.org accepted 250
	// gone@example.org failed 550
	// nobody has it: send it again later, whole
}

// In the place of net/smtp.SendMail.
func ExamplePool_SendMail() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.Rcpt).For("gone@example.org").Reply(550, "5.1.1 No such user")
	pool := newPool(relay)
	defer pool.Close()

	// The address and the smtp.Auth are not looked at.
	err := pool.SendMail("", nil, "shop@example.com", []string{"customer@example.org"}, []byte("Subject: Your order\n\nIt is on its way.\n"))
	fmt.Println(err)

	err = pool.SendMail("", nil, "shop@example.com", []string{"customer@example.org", "gone@example.org"}, []byte("Subject: Your order\n\nIt is on its way.\n"))
	var refusal *textproto.Error
	if errors.As(err, &refusal) {
		fmt.Println(refusal.Code, refusal.Msg)
	}
	// Output:
	// <nil>
	// 550 5.1.1 No such user
}

// Relays from the environment or a file, one URL each.
func ExampleParseRelay() {
	relay, err := smtplb.ParseRelay("smtp://me%40example.com:p%40ss@smtp.example.net:587?name=provider-a&weight=3")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(relay.Name, relay.Addr, relay.Username, relay.Weight)
	fmt.Println(relay) // without the password

	_, err = smtplb.ParseRelay("smtp://me:p@ss@smtp.example.net")
	fmt.Println(err)
	// Output:
	// provider-a smtp.example.net:587 me@example.com 3
	// smtp://me%40example.com:xxxxx@smtp.example.net:587?name=provider-a&weight=3
	// smtplb: relay URL: smtp://…: the user or password has an "@": write it as %40
}

// Some recipients are to be tried again later.
func ExampleReceipt_Retry() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.Rcpt).For("grey@example.org").Times(1).Reply(451, "4.7.1 Greylisted, try again in 5 minutes")
	pool := newPool(relay)
	defer pool.Close()

	e := &smtplb.Envelope{
		From: "shop@example.com",
		To:   []string{"customer@example.org", "grey@example.org"},
		Body: smtplb.Bytes([]byte("Subject: Your order\r\n\r\nIt is on its way.\r\n")),
	}
	for range 3 { // not for ever
		receipt, err := pool.Deliver(context.Background(), e)
		fmt.Println(receipt)
		if e = receipt.Retry(e); e == nil { // nobody is deferred
			break
		}
		var deferred *smtplb.SendError
		if errors.As(err, &deferred) {
			fmt.Println("again in", deferred.RetryAfter) // put it into a queue, or wait so long
		}
	}
	// Output:
	// 2 recipients: 1 accepted, 1 deferred; tried relay-1
	// again in 5m10s
	// 1 recipient: 1 accepted; tried relay-1
}

// OAuth 2: an access token that is fetched when it is needed, and again when it was refused.
func ExampleTokenAuth() {
	relay := smtptest.NewServer(smtptest.WithTLS(), smtptest.WithAuth("user@example.com", "token-2", "XOAUTH2"))
	defer relay.Close()

	token := "token-1" // it has expired meanwhile
	pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{
		Name:      "provider",
		Addr:      relay.Addr,
		TLSConfig: relay.ClientTLS(), // trusts the test relay's certificate
		Auth: smtplb.TokenAuth("user@example.com", func(ctx context.Context, r smtplb.AuthRequest) (string, error) {
			if r.Refused != nil {
				token = "token-2" // fetch a new one
			}
			return token, nil
		}),
	}}})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	receipt, err := pool.Deliver(context.Background(), &smtplb.Envelope{
		From: "user@example.com", To: []string{"customer@example.org"}, Body: smtplb.Bytes([]byte("Subject: Hello\r\n\r\nHello.\r\n")),
	})
	fmt.Println(receipt, err)
	// Output: 1 recipient: 1 accepted; tried provider <nil>
}

// At the end of a program: what was begun is finished, for up to ten seconds.
func ExamplePool_Shutdown() {
	relay := smtptest.NewServer()
	defer relay.Close()
	pool := newPool(relay)

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := pool.Shutdown(ctx); err != nil {
		fmt.Println("sends were cut short:", err)
	}

	err := pool.SendMail("", nil, "shop@example.com", []string{"customer@example.org"}, []byte("Subject: Too late\n\nIndeed.\n"))
	fmt.Println(errors.Is(err, smtplb.ErrClosed))
	// Output: true
}

func ExamplePool_Stats() {
	sick, well := smtptest.NewServer(), smtptest.NewServer()
	defer sick.Close()
	defer well.Close()
	pool := newPool(sick, well)
	defer pool.Close()

	sick.Kill()
	for range 20 {
		if err := pool.SendMail("", nil, "shop@example.com", []string{"customer@example.org"}, []byte("Subject: Your order\n\nIt is on its way.\n")); err != nil {
			log.Fatal(err)
		}
	}
	for _, r := range pool.Stats().Relays {
		fmt.Println(r.Name, r.State, "accepted:", r.Accepted, "faults:", r.Faults)
	}
	// Output:
	// relay-1 open accepted: 0 faults: 5
	// relay-2 up accepted: 20 faults: 0
}

// A sequence of envelopes, such as a newsletter's, many at a time over three connections. The sequence is asked for the next envelope only when there is room for it.
func ExamplePool_DeliverAll() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.Rcpt).For("gone@example.net").Reply(550, "5.1.1 No such user")
	pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Name: "relay", Addr: relay.Addr, Conns: smtplb.Conns{Max: 3}}}})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	subscribers := []string{"ann@example.com", "bob@example.org", "gone@example.net", "zoe@example.com"}
	envelopes := func(yield func(*smtplb.Envelope) bool) {
		for _, to := range subscribers {
			e := &smtplb.Envelope{
				From: "news@example.com", To: []string{to},
				Body: smtplb.Bytes([]byte("From: news@example.com\nTo: " + to + "\nSubject: News\n\nHello.\n")),
			}
			if !yield(e) {
				return
			}
		}
	}
	var last smtplb.Progress
	for result := range pool.DeliverAll(context.Background(), envelopes, smtplb.Bulk{
		Ordered:  true,
		Progress: func(p smtplb.Progress) { last = p },
	}) {
		fmt.Println(result.Envelope.To[0], result.Receipt.Recipients[0].Outcome)
	}
	fmt.Println(last.Accepted, "accepted,", last.Failed, "failed")
	// Output:
	// ann@example.com accepted
	// bob@example.org accepted
	// gone@example.net failed
	// zoe@example.com accepted
	// 3 accepted, 1 failed
}

// A notification is wanted when the message was delivered as well as when it wasn't, and no more than the header is to come back.
func ExampleDSN() {
	relay := smtptest.NewServer()
	defer relay.Close()
	pool := newPool(relay)
	defer pool.Close()
	_, err := pool.Deliver(context.Background(), &smtplb.Envelope{
		From: "shop@example.com", To: []string{"customer@example.org"},
		Body: smtplb.Bytes([]byte("Subject: Invoice 17\n\nSee you.\n")),
		DSN:  &smtplb.DSN{Notify: smtplb.DSNSuccess | smtplb.DSNFailure, Return: smtplb.DSNReturnHeaders, EnvelopeID: "invoice-17"},
	})
	m := relay.Messages()[0]
	fmt.Println(m.MailParams[1:], m.RcptParams[0], err)
	// Output:
	// [RET=HDRS ENVID=invoice-17] [NOTIFY=SUCCESS,FAILURE] <nil>
}

// Who would get a message, and who would not, without sending it.
func ExamplePool_Explain() {
	pool, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{
			{Name: "provider-a", Addr: "smtp.a.example:587", Weight: 3},
			{Name: "provider-b", Addr: "smtp.b.example:587"},
			{Name: "last-resort", Addr: "localhost:25", Tier: 1},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	plan, err := pool.Explain(context.Background(), &smtplb.Envelope{From: "shop@example.com", To: []string{"customer@example.org"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(plan)
	// Output:
	// goes out now, tier 0:
	//   provider-a: 75 %, weight 3, 0 of 10 connections in use, 0 idle
	//   provider-b: 25 %, weight 1, 0 of 10 connections in use, 0 idle
	// not now:
	//   last-resort: tier 0 can take it (can be tried afterwards)
}

// Another configuration while mail is being sent: one relay goes, another comes, and no send fails because of it.
func ExamplePool_Update() {
	old, fresh := smtptest.NewServer(), smtptest.NewServer()
	defer old.Close()
	defer fresh.Close()
	pool := newPool(old)
	defer pool.Close()

	err := pool.Update(smtplb.Config{Relays: []smtplb.Relay{{Name: "fresh", Addr: fresh.Addr}}})
	if err != nil {
		log.Fatal(err) // nothing has changed
	}
	for _, e := range pool.Stats().Events {
		fmt.Println(e.Relay, e.State)
	}
	// Output:
	// relay-1 removed
	// fresh added
}

// Mail to Gmail leaves by relays of its own, and so do newsletters, whoever they are for; the recipients of one message may leave by several.
func ExampleRoute() {
	a, b, c := smtptest.NewServer(), smtptest.NewServer(), smtptest.NewServer()
	for _, s := range []*smtptest.Server{a, b, c} {
		defer s.Close()
	}
	pool, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{
			{Name: "office", Addr: a.Addr},
			{Name: "for-gmail", Addr: b.Addr, Tags: []string{"gmail"}, RoutedOnly: true}, // nothing else goes there
			{Name: "newsletters", Addr: c.Addr, RoutedOnly: true},
		},
		Routes: []smtplb.Route{
			{Name: "gmail", Recipients: []string{"gmail.com", "googlemail.com"}, Tags: []string{"gmail"}},
			{Name: "news", Streams: []string{"newsletter"}, Relays: []string{"newsletters"}},
			{Name: "gmail's news", Recipients: []string{"gmail.com", "googlemail.com"}, Streams: []string{"newsletter"}, Relays: []string{"newsletters"}},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	for _, stream := range []string{"", "newsletter"} {
		receipt, err := pool.Deliver(context.Background(), &smtplb.Envelope{
			From: "shop@example.com", To: []string{"ann@gmail.com", "bob@example.org"}, Stream: stream,
			Body: smtplb.Bytes([]byte("From: shop@example.com\r\nSubject: Hello\r\n\r\nHello.\r\n")),
		})
		if err != nil {
			log.Fatal(err)
		}
		for _, r := range receipt.Recipients {
			fmt.Println(r.Addr, r.Outcome, "by", r.Relay)
		}
	}
	// Output:
	// ann@gmail.com accepted by for-gmail
	// bob@example.org accepted by office
	// ann@gmail.com accepted by newsletters
	// bob@example.org accepted by newsletters
}
