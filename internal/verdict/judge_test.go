package verdict_test

import (
	"strings"
	"testing"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/verdict"
)

// show writes a verdict in the shorthand of the tables below.
//
//	A accepted   F next relay   P failed   D deferred   U unknown   G again   R redial   I ignore
//	. not counted   = answered   + fault   a auth fault   c config fault   t throttle   q cool-down
//	X discard   r refused   p kept apart   L needs a larger relay   C needs a capable one   g greylisting
func show(v verdict.Verdict) string {
	b := []byte{"?AFPDUGRI"[v.Move], ".=+actq"[v.Blame]}
	for _, f := range []struct {
		set    bool
		letter byte
	}{{v.Discard, 'X'}, {v.Refused, 'r'}, {v.Apart, 'p'}, {v.Need == verdict.NeedLarger, 'L'}, {v.Need == verdict.NeedCapability, 'C'}, {v.Greylist, 'g'}} {
		if f.set {
			b = append(b, f.letter)
		}
	}
	return string(b)
}

func parse(t testing.TB, s string) reply.Reply {
	t.Helper()
	var r reply.Reader
	r.Reset(strings.NewReader(s+"\r\n"), make([]byte, 256))
	got, err := r.Read()
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return got
}

var stages = map[string]reply.Stage{}

func init() {
	for s := reply.StageNone; s <= reply.StageQuit; s++ {
		stages[s.String()] = s
	}
}

func stage(t testing.TB, name string) reply.Stage {
	t.Helper()
	s, ok := stages[name]
	if !ok {
		t.Fatalf("no stage %q", name)
	}
	return s
}

// The whole matrix of specs/session.md §3 for replies that say nothing more than their code. Each cell was written by hand.
const matrix = `
# A fresh connection, or one that has answered in this transaction.
fresh     2xx  354  4xx  5xx  421  timeout eof  reset malformed tls
dial      F+X  F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
tls       F+X  F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
banner    I.   F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
ehlo      I.   F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
starttls  I.   F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
auth      I.   F+X  F+X  FaX  F+X  F+X     F+X  F+X   F+X       F+X
mail      I.   F+X  F=   F=r  F+X  F+X     F+X  F+X   F+X       F+X
rcpt      I.   F+X  F=   P=   F+X  F+X     F+X  F+X   F+X       F+X
data      F+X  I.   F=   P=   F+X  F+X     F+X  F+X   F+X       F+X
body      F+X  F+X  F=X  P=X  F+X  F+X     F+X  F+X   F+X       F+X
final     A=   U+X  F=   P=   F+X  U+X     U+X  U+X   U+X       U+X
rset      I.   I.X  I.X  I.X  I.X  I.X     I.X  I.X   I.X       I.X
quit      I.X  I.X  I.X  I.X  I.X  I.X     I.X  I.X   I.X       I.X

# A connection that was idle, and nothing was received since: it may be stale.
reused    2xx  354  4xx  5xx  421  timeout eof  reset malformed tls
dial      F+X  F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
tls       F+X  F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
banner    I.   F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
ehlo      I.   F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
starttls  I.   F+X  F+X  F+X  F+X  F+X     F+X  F+X   F+X       F+X
auth      I.   F+X  F+X  FaX  F+X  F+X     F+X  F+X   F+X       F+X
mail      I.   F+X  F=   F=r  R.X  F+X     R.X  R.X   F+X       F+X
rcpt      I.   F+X  F=   P=   R.X  F+X     R.X  R.X   F+X       F+X
data      F+X  I.   F=   P=   R.X  F+X     R.X  R.X   F+X       F+X
body      F+X  F+X  F=X  P=X  R.X  F+X     R.X  R.X   F+X       F+X
final     A=   U+X  F=   P=   F+X  U+X     U+X  U+X   U+X       U+X
rset      I.   I.X  I.X  I.X  I.X  I.X     I.X  I.X   I.X       I.X
quit      I.X  I.X  I.X  I.X  I.X  I.X     I.X  I.X   I.X       I.X

# Behind the commit point, on any connection. The stages before MAIL can't be behind it: nothing that comes there settles a message.
committed 2xx  354  4xx  5xx  421  timeout eof  reset malformed tls
dial      U.X  U.X  U.X  U.X  U.X  U+X     U+X  U+X   U+X       U+X
tls       U.X  U.X  U.X  U.X  U.X  U+X     U+X  U+X   U+X       U+X
banner    U.X  U.X  U.X  U.X  U.X  U+X     U+X  U+X   U+X       U+X
ehlo      U.X  U.X  U.X  U.X  U.X  U+X     U+X  U+X   U+X       U+X
starttls  U.X  U.X  U.X  U.X  U.X  U+X     U+X  U+X   U+X       U+X
auth      U.X  U.X  U.X  U.X  U.X  U+X     U+X  U+X   U+X       U+X
mail      I.   U+X  F=   F=r  F+X  U+X     U+X  U+X   U+X       U+X
rcpt      I.   U+X  F=   P=   F+X  U+X     U+X  U+X   U+X       U+X
data      U+X  I.   F=   P=   F+X  U+X     U+X  U+X   U+X       U+X
body      U+X  U+X  F=X  P=X  F+X  U+X     U+X  U+X   U+X       U+X
final     A=   U+X  F=   P=   F+X  U+X     U+X  U+X   U+X       U+X
rset      I.   I.X  I.X  I.X  I.X  I.X     I.X  I.X   I.X       I.X
quit      I.X  I.X  I.X  I.X  I.X  I.X     I.X  I.X   I.X       I.X
`

func TestJudgeMatrix(t *testing.T) {
	replies := map[string]string{"2xx": "250 ok", "354": "354 go", "4xx": "450 no", "5xx": "550 no", "421": "421 bye"}
	failures := map[string]reply.Failure{"timeout": reply.FailTimeout, "eof": reply.FailEOF, "reset": reply.FailReset, "malformed": reply.FailMalformed, "tls": reply.FailTLS}
	variants := map[string][]verdict.Fact{
		"fresh":     {{}, {First: true}, {Reused: true}},
		"reused":    {{Reused: true, First: true}},
		"committed": {{Committed: true}, {Committed: true, First: true}, {Committed: true, Reused: true}, {Committed: true, Reused: true, First: true}},
	}
	var block string
	var columns []string
	cells := 0
	for line := range strings.Lines(matrix) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if variants[f[0]] != nil {
			block, columns = f[0], f[1:]
			continue
		}
		if len(f) != len(columns)+1 {
			t.Fatalf("a row with %d columns: %s", len(f), line)
		}
		for i, want := range f[1:] {
			for _, fact := range variants[block] {
				fact.Stage = stage(t, f[0])
				if text, ok := replies[columns[i]]; ok {
					fact.Reply = parse(t, text)
				} else {
					fact.Failure = failures[columns[i]]
				}
				cells++
				if got := show(verdict.Judge(fact)); got != want {
					t.Errorf("%s (reused %v, first %v), %s, %s: %s, want %s", block, fact.Reused, fact.First, f[0], columns[i], got, want)
				}
			}
		}
	}
	if want := 13 * 10 * 8; cells != want {
		t.Errorf("%d cells were tried, want %d", cells, want)
	}
}

// What else can end a stage without a reply.
func TestJudgeFailures(t *testing.T) {
	type fact = verdict.Fact
	for _, tt := range []struct {
		name string
		fact fact
		want string
	}{
		{"the name does not resolve", fact{Stage: reply.StageDial, Failure: reply.FailDNS}, "F+X"},
		{"connection refused", fact{Stage: reply.StageDial, Failure: reply.FailConnect}, "F+X"},
		{"a certificate that is not accepted", fact{Stage: reply.StageTLS, Failure: reply.FailCertificate}, "FcX"},
		{"TLS error at STARTTLS", fact{Stage: reply.StageTLS, Failure: reply.FailTLS}, "F+X"},
		{"no STARTTLS", fact{Stage: reply.StageStartTLS, Failure: reply.FailCapability}, "F+X"},
		{"no AUTH", fact{Stage: reply.StageAuth, Failure: reply.FailCapability}, "FaX"},
		{"a wrong server signature", fact{Stage: reply.StageAuth, Failure: reply.FailAuth}, "FaX"},
		{"no 8BITMIME", fact{Stage: reply.StageMail, Failure: reply.FailCapability}, "F.C"},
		{"no 8BITMIME on a reused connection", fact{Stage: reply.StageMail, Failure: reply.FailCapability, Reused: true, First: true}, "F.C"},

		{"out of step before the commit point", fact{Stage: reply.StageMail, Failure: reply.FailOutOfStep}, "F+X"},
		{"out of step on a reused connection", fact{Stage: reply.StageMail, Failure: reply.FailOutOfStep, Reused: true, First: true}, "F+X"},
		{"out of step after it", fact{Stage: reply.StageFinal, Failure: reply.FailOutOfStep, Committed: true}, "U+X"},

		{"timeout", fact{Stage: reply.StageRcpt, Failure: reply.FailTimeout}, "F+X"},
		{"timeout, long", fact{Stage: reply.StageRcpt, Failure: reply.FailTimeout, LongWait: true}, "F+X"},
		{"timeout, cut short", fact{Stage: reply.StageRcpt, Failure: reply.FailTimeout, Shortened: true}, "F.X"},
		{"timeout, cut short, yet long", fact{Stage: reply.StageRcpt, Failure: reply.FailTimeout, Shortened: true, LongWait: true}, "F+X"},
		{"timeout of the final reply", fact{Stage: reply.StageFinal, Failure: reply.FailTimeout, Committed: true}, "U+X"},
		{"timeout behind the commit point, cut short", fact{Stage: reply.StageFinal, Failure: reply.FailTimeout, Committed: true, Shortened: true}, "U.X"},
		{"timeout while dialling, cut short", fact{Stage: reply.StageDial, Failure: reply.FailTimeout, Shortened: true}, "F.X"},

		{"cancelled", fact{Stage: reply.StageData, Failure: reply.FailCanceled}, "D.X"},
		{"cancelled after a long wait", fact{Stage: reply.StageData, Failure: reply.FailCanceled, LongWait: true}, "D.X"},
		{"cancelled on a reused connection", fact{Stage: reply.StageMail, Failure: reply.FailCanceled, Reused: true, First: true}, "D.X"},
		{"cancelled while dialling", fact{Stage: reply.StageDial, Failure: reply.FailCanceled}, "D.X"},
		{"cancelled after the commit point", fact{Stage: reply.StageFinal, Failure: reply.FailCanceled, Committed: true}, "U.X"},
		{"deadline", fact{Stage: reply.StageData, Failure: reply.FailDeadline}, "D.X"},
		{"deadline after a long wait", fact{Stage: reply.StageData, Failure: reply.FailDeadline, LongWait: true}, "D+X"},
		{"too little time left to commit", fact{Stage: reply.StageBody, Failure: reply.FailDeadline}, "D.X"},
		{"deadline after the commit point", fact{Stage: reply.StageFinal, Failure: reply.FailDeadline, Committed: true}, "U.X"},
		{"deadline after the commit point and a long wait", fact{Stage: reply.StageFinal, Failure: reply.FailDeadline, Committed: true, LongWait: true}, "U+X"},
		{"we are out of files", fact{Stage: reply.StageDial, Failure: reply.FailLocal}, "F.X"},
		{"the source failed", fact{Stage: reply.StageBody, Failure: reply.FailSource}, "D.X"},
		{"the source failed before anything", fact{Stage: reply.StageMail, Failure: reply.FailSource, Reused: true, First: true}, "D.X"},
		{"the source failed after the commit point", fact{Stage: reply.StageFinal, Failure: reply.FailSource, Committed: true}, "U.X"},

		{"a failure counts more than a reply that came with it", fact{Stage: reply.StageFinal, Reply: parse(t, "250 ok"), Failure: reply.FailOutOfStep, Committed: true}, "U+X"},
		{"a failure counts more than a 421", fact{Stage: reply.StageMail, Reply: parse(t, "421 bye"), Failure: reply.FailMalformed, Reused: true, First: true}, "F+X"},
		{"nothing", fact{}, "F.X"},
		{"nothing at RCPT", fact{Stage: reply.StageRcpt}, "F.X"},
		{"nothing after the commit point", fact{Committed: true}, "U.X"},
		{"nothing, waiting for the final reply", fact{Stage: reply.StageFinal}, "U.X"},
		{"a code that can't be", fact{Stage: reply.StageMail, Reply: reply.Reply{Code: 650}}, "F+X"},
		{"a challenge", fact{Stage: reply.StageAuth, Reply: parse(t, "334 dGVzdA==")}, "I."},
		{"another 3xx to DATA", fact{Stage: reply.StageData, Reply: parse(t, "350 go")}, "F+X"},
		{"a challenge elsewhere", fact{Stage: reply.StageData, Reply: parse(t, "334 go")}, "F+X"},
	} {
		if got := show(verdict.Judge(tt.fact)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// The 5xx table of specs/session.md §3, and what it must not be confused with. A row is a reply and its verdict at each stage.
func TestJudge5xx(t *testing.T) {
	for _, tt := range []struct{ reply, auth, mail, rcpt, data, body, final string }{
		// the recipient
		{"550 5.1.1 no such user", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.1.2 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.1.3 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"501 5.1.3 x", "FaX", "F=X", "P=", "F=X", "F=X", "F=X"},
		{"550 5.1.4 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"551 5.1.6 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"556 5.1.10 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.2.1 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"552 5.2.2 mailbox full, too many messages", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"555 5.2.9 x", "FaX", "F=rC", "P=", "F=rC", "F=XrC", "F=rC"},
		{"530 5.1.1 x", "FaX", "FaX", "P=", "FaX", "FaX", "FaX"},
		{"530 5.1.0 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"530 5.1.2 x", "FaX", "FaX", "P=", "FaX", "FaX", "FaX"},
		{"530 5.1.3 x", "FaX", "FaX", "P=", "FaX", "FaX", "FaX"},
		{"530 5.1.4 x", "FaX", "FaX", "P=", "FaX", "FaX", "FaX"},
		{"530 5.1.5 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"530 5.1.6 x", "FaX", "FaX", "P=", "FaX", "FaX", "FaX"},
		{"530 5.1.9 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"530 5.1.10 x", "FaX", "FaX", "P=", "FaX", "FaX", "FaX"},
		{"530 5.1.11 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"550 5.2.250 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.2.251 x", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 5.2.255 x", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 5.2.256 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		// the sender
		{"553 5.1.7 x", "FaX", "P=", "P=", "P=", "P=X", "P="},
		{"553 5.1.8 sender not authorized", "FaX", "P=", "P=", "P=", "P=X", "P="},
		{"550 5.7.27 x", "FaX", "P=", "P=", "P=", "P=X", "P="},
		{"552 5.1.8 x", "FaX", "P=", "P=", "P=", "P=X", "P="},
		// the message is too large
		{"550 5.3.4 x", "FaX", "F=rL", "P=", "F=rL", "F=XrL", "F=rL"},
		{"552 5.3.4 x", "FaX", "F=rL", "P=", "F=rL", "F=XrL", "F=rL"},
		{"552 x", "FaX", "F=rL", "P=", "F=rL", "F=XrL", "F=rL"},
		{"552 5.0.0 x", "FaX", "F=rL", "P=", "F=rL", "F=XrL", "F=rL"},
		{"552 5.2.3 x", "FaX", "F=rL", "P=", "F=rL", "F=XrL", "F=rL"},
		{"552 5.7.0 blocked because its content presents a potential security issue", "FaX", "F=r", "P=", "P=", "P=X", "P="}, // Gmail
		{"552 daily sending quota exceeded", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		// too many recipients
		{"552 5.5.3 x", "FaX", "F=r", "G=", "P=", "P=X", "P="},
		{"550 5.5.3 x", "FaX", "F=r", "G=", "P=", "P=X", "P="},
		{"552 too many recipients", "FaX", "F=rL", "G=", "F=rL", "F=XrL", "F=rL"},
		{"552 Too many of them", "FaX", "F=rL", "G=", "F=rL", "F=XrL", "F=rL"},
		{"550 too many recipients", "FaX", "F=r", "G=", "P=", "P=X", "P="},
		{"550 too many of them", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 daily recipient limit exceeded", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		// a capability
		{"553 5.6.7 x", "FaX", "F=rC", "F=rC", "F=rC", "F=XrC", "F=rC"},
		{"555 x", "FaX", "F=rC", "F=rC", "F=rC", "F=XrC", "F=rC"},
		{"555 5.5.4 x", "FaX", "F=rC", "F=rC", "F=rC", "F=XrC", "F=rC"},
		// authentication
		{"530 5.7.0 Authentication required", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"534 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"535 5.7.8 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"535 too many login attempts", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"538 x", "FaX", "FaX", "FaX", "FaX", "FaX", "FaX"},
		{"550 5.7.8 x", "FaX", "FaX", "FaX", "FaX", "P=X", "P="},
		{"504 5.7.9 x", "FaX", "FaX", "FaX", "FaX", "F=X", "F=X"},
		// the protocol
		{"500 x", "FaX", "F=X", "F=X", "F=X", "F=X", "F=X"},
		{"501 x", "FaX", "F=X", "F=X", "F=X", "F=X", "F=X"},
		{"502 5.5.1 x", "FaX", "F=X", "F=X", "F=X", "F=X", "F=X"},
		{"503 x", "FaX", "F=X", "F=X", "F=X", "F=X", "F=X"},
		{"504 x", "FaX", "F=X", "F=X", "F=X", "F=X", "F=X"},
		{"505 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		// the relay's quota
		{"550 5.4.5 x", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 5.7.232 x", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 5.7.233 x", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 5.7.234 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.7.236 x", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 sending limit exceeded", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"550 too many messages", "FqX", "Fq", "Fq", "Fq", "FqX", "Fq"},
		{"554 5.1.1 too many messages for this user", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		// this relay refuses this sender
		{"554 5.7.1 <bob@example.com>: Relay access denied", "FaX", "F=rp", "F=rp", "F=rp", "F=Xrp", "F=rp"},
		{"550 sender not verified", "FaX", "F=rp", "F=rp", "F=rp", "F=Xrp", "F=rp"},
		// anything else
		{"550 no", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"554 5.7.1 spam", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.1.0 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"550 5.4.4 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		{"571 x", "FaX", "F=r", "P=", "P=", "P=X", "P="},
		// the relay's own trouble
		{"554 5.3.0 x", "FaX", "F+r", "P=", "P+", "P+X", "P+"},
		{"554 5.3.5 x", "FaX", "F+r", "P=", "P+", "P+X", "P+"},
		{"550 5.3.0 Relaying denied", "FaX", "F=rp", "F=rp", "F=rp", "F=Xrp", "F=rp"},
		{"502 5.3.3 x", "FaX", "F=X", "F=X", "F=X", "F=X", "F=X"},
	} {
		for name, want := range map[string]string{"auth": tt.auth, "mail": tt.mail, "rcpt": tt.rcpt, "data": tt.data, "body": tt.body, "final": tt.final} {
			f := verdict.Fact{Stage: stage(t, name), Reply: parse(t, tt.reply), Reused: true, First: true, Committed: name == "final"}
			if got := show(verdict.Judge(f)); got != want {
				t.Errorf("%s at %s: %s, want %s", tt.reply, name, got, want)
			}
		}
	}
}

// Real replies, at the stage where they come.
func TestJudgeSamples(t *testing.T) {
	for _, tt := range []struct{ from, stage, reply, want string }{
		// specs/traffic-policy.md §3
		{"SES", "banner", "421 Too many concurrent SMTP connections", "FtX"},
		{"SES", "mail", "421 Too many concurrent SMTP connections", "FtX"},
		{"SES", "final", "454 Throttling failure: Maximum sending rate exceeded.", "Ft"},
		{"SES", "mail", "454 Throttling failure: Maximum sending rate exceeded.", "Ft"},
		{"SES", "final", "454 Throttling failure: Daily message quota exceeded.", "Fq"},
		{"SES", "final", "554 Message rejected: Email address is not verified. The following identities failed the check in region US-EAST-1: bob@example.com", "F=rp"},
		{"SES", "auth", "535 Authentication Credentials Invalid", "FaX"},
		{"SES", "final", "554 Message rejected: Sending suspended for this account.", "P="},
		{"Microsoft 365", "auth", "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=AM0PR0X.eurprd01.prod.outlook.com]", "FtX"},
		{"Microsoft 365", "final", "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=AM0PR0X.eurprd01.prod.outlook.com]", "Ft"},
		{"Microsoft 365", "final", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", "Ft"},
		{"Microsoft 365", "final", "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message due to a permanent exception with message The message can't be submitted because the sender's submission quota was exceeded.", "Fq"},
		{"Microsoft 365", "final", "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", "Fq"},
		{"Microsoft 365", "final", "554 5.2.252 SendAsDenied; alice@example.com not allowed to send as bob@example.com; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message", "F=rp"},
		{"Microsoft 365", "final", "550 5.2.251 Sender throttled due to continuous mailbox full errors.", "Fq"},
		{"Microsoft 365", "final", "550 5.2.252 Sender throttled due to continuous send as denied errors.", "Fq"},
		{"Microsoft 365", "final", "550 5.2.253 Sender throttled due to continuous invalid license errors.", "Fq"},
		{"Microsoft 365", "final", "550 5.2.254 Sender throttled due to continuous too many recipients errors.", "Fq"},
		{"Microsoft 365", "rcpt", "550 5.2.254 Sender throttled due to continuous too many recipients errors.", "Fq"},
		{"Microsoft 365", "final", "550 5.2.255 Sender throttled due to continuous invalid recipients errors.", "Fq"},
		{"Microsoft 365", "mail", "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit).", "Fq"},
		{"Microsoft 365", "auth", "535 5.7.3 Authentication unsuccessful", "FaX"},
		{"Microsoft 365", "auth", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.", "FaX"},
		{"Microsoft 365", "mail", "530 5.7.57 Client not authenticated to send mail.", "FaX"},
		{"Google relay", "mail", "450 4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary error.", "Ft"},
		{"Google relay", "mail", "550 5.7.1 Daily SMTP relay limit exceeded for customer. For more information on SMTP relay sending limits", "Fq"},
		{"Google relay", "rcpt", "550 5.7.1 Daily SMTP relay limit exceeded for user.", "Fq"},
		{"Google relay", "final", "550-5.4.5 Daily user sending limit exceeded. For more information on Gmail\r\n550-5.4.5 sending limits go to\r\n550 5.4.5  https://support.google.com/a/answer/166852 - gsmtp", "Fq"},
		{"Google", "rcpt", "452-4.5.3 Your message has too many recipients. For more information regarding\r\n452-4.5.3 Google's sending limits, go to\r\n452 4.5.3  https://support.google.com/mail/?p=TooManyRecipientsError - gsmtp", "G="},
		{"Google", "auth", "454 4.7.0 Too many login attempts, please try again later.", "FtX"},
		{"SocketLabs", "mail", "421 4.4.5 Too many connections", "FtX"},
		{"SocketLabs", "banner", "421 4.4.5 Try later", "FtX"},
		{"SocketLabs", "rcpt", "452 5.5.3 Recipients", "G="},
		{"SocketLabs", "mail", "452 5.5.3 Recipients", "Fq"},
		{"Emailit", "mail", "452 4.4.5 Messages per second limit exceeded", "Ft"},
		{"Emailit", "mail", "452 4.5.3 Daily message limit exceeded", "Fq"},
		{"Emailit", "mail", "452 4.5.3 No more", "Fq"},
		{"msndr", "auth", "550 Too many messages. Try again in 92 seconds.", "FqX"},
		{"Gmail", "final", "421-4.7.28 Our system has detected an unusual rate of unsolicited mail originating\r\n421-4.7.28 from your IP address. To protect our users from spam, mail sent from\r\n421 4.7.28 your IP address has been temporarily rate limited. - gsmtp", "FtX"},
		{"Gmail", "final", "421 4.7.28 x", "FtX"},
		{"Gmail", "final", "421-4.7.0 [192.0.2.1 15] Our system has detected an\r\n421 4.7.0 unusual rate of unsolicited mail originating from your IP address.", "FtX"},
		{"Gmail", "rcpt", "450 4.2.1 The user you are trying to contact is receiving mail too quickly. Please resend your message at a later time.", "Ft"},
		{"Gmail", "rcpt", "450-4.2.1 The user you are trying to contact is receiving mail at a rate that\r\n450 4.2.1 prevents additional messages from being delivered.", "Ft"},
		{"Gmail", "rcpt", "550-5.2.1 The user you are trying to contact is receiving mail at a rate that\r\n550 5.2.1 prevents additional messages from being delivered.", "P="},
		{"Gmail", "mail", "421 4.7.0 Connection expired, try reconnecting.", "FqX"},
		{"Microsoft", "mail", "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.", "Ft"},
		{"Microsoft", "mail", "451 4.7.650 x", "Ft"},
		{"Microsoft", "mail", "451 4.7.651 x", "Ft"},
		{"Microsoft", "mail", "451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections.", "Ft"},
		{"Microsoft", "mail", "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719)", "Ft"},
		{"Microsoft", "mail", "421 RP-001 (BAY004-MC1F27) Unfortunately, some messages from 192.0.2.1 weren't sent.", "FtX"},
		{"Microsoft", "mail", "421 RP-002 (BAY004-MC1F27) x", "FtX"},
		{"Microsoft", "banner", "421 RP-003 (BAY004-MC1F27) x", "FtX"},
		{"Yahoo", "mail", "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1", "FtX"},
		{"Yahoo", "mail", "421 4.7.0 [TSS04] x", "FtX"},
		{"Yahoo", "mail", "421 4.7.0 [TS03] All messages from 192.0.2.1 will be permanently deferred", "FtX"},
		{"iCloud", "mail", "421 4.7.1 Messages from this sender deferred due to excessive volume", "FtX"},

		// throttling elsewhere
		{"Postfix anvil", "banner", "421 4.7.0 mx.example.net Error: too many connections from 192.0.2.1", "FtX"},
		{"Postfix anvil", "mail", "450 4.7.1 Error: too much mail from 192.0.2.1", "Ft"},
		{"Postfix anvil", "rcpt", "450 4.7.1 Error: too many recipients from 192.0.2.1", "Ft"},
		{"Postfix anvil", "auth", "450 4.7.1 Error: too many AUTH commands from 192.0.2.1", "FtX"},
		{"Postfix anvil", "starttls", "454 4.7.0 Error: too many new TLS sessions from 192.0.2.1", "FtX"},
		{"Postfix anvil", "banner", "421 4.7.0 mx.example.net Error: too many new TLS sessions from 192.0.2.1", "FtX"},
		{"not Postfix's, in a transaction", "rcpt", "452 4.5.3 too many recipients from 192.0.2.1", "G="},
		{"of the address, says the code", "rcpt", "450 4.1.1 too many recipients from 192.0.2.1", "F="},
		{"postscreen", "banner", "421 4.3.2 All server ports are busy", "FtX"},
		{"Postfix", "banner", "421 4.3.2 No system resources", "FtX"},
		{"Exim", "banner", "421 Too many concurrent SMTP connections; please try again later.", "FtX"},
		{"Exchange", "mail", "421 4.4.2 Message submission rate for this client has exceeded the configured limit", "FtX"},
		{"cPanel", "rcpt", "550 Domain example.com has exceeded the max emails per hour (100/100 (100%)) allowed. Message discarded.", "Fq"},
		{"SendGrid", "auth", "451 Authentication failed: Maximum credits exceeded", "FqX"},
		{"a service at the greeting", "banner", "554 5.7.1 Too many connections from your host", "FqX"},

		// a connection that is used up
		{"Exim", "mail", "421 too many messages in this connection", "FqX"},
		{"Yahoo", "mail", "421 Max message per connection reached, closing transmission channel", "FqX"},
		{"any", "mail", "451 4.7.0 Maximum number of messages per session reached", "FqX"},
		{"any", "data", "421 4.7.0 Maximum session time exceeded", "FqX"},

		// greylisting
		{"Postgrey", "rcpt", "450 4.2.0 <bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/example.com.html", "D=g"},
		{"milter-greylist", "rcpt", "451 4.7.1 Greylisting in action, please come back in 00:05:00", "D=g"},
		{"SQLgrey", "rcpt", "450 4.7.1 <bob@example.com>: Recipient address rejected: Greylisted for 5 minutes", "D=g"},
		{"Exim", "rcpt", "451 You have been greylisted, try again later", "D=g"},
		{"rspamd", "rcpt", "451 4.7.1 Try again later: greylisted", "D=g"},
		{"Haraka", "rcpt", "450 4.7.1 Grey listed: first seen", "D=g"},
		{"American", "rcpt", "451 4.7.1 Graylisted, please retry", "D=g"},
		{"one word", "rcpt", "451 Grey: please retry", "D=g"},
		{"wrapped", "rcpt", "450-4.2.0 You were put on a grey\r\n450 4.2.0 list, retry", "D=g"},
		{"with a time that looks like a rate", "rcpt", "451 4.7.1 Greylisted, too many messages", "D=g"},
		{"greylisting at DATA", "data", "451 4.7.1 Greylisting in action", "F="},
		{"greylisting after the body", "final", "451 4.7.1 Greylisting in action", "F="},
		{"greylisting at MAIL", "mail", "451 4.7.1 Greylisting in action", "F="},
		{"greylisting with a 421", "rcpt", "421 4.7.1 Greylisting in action", "F+X"},
		{"greylisting for good", "rcpt", "550 5.7.1 Greylisting in action", "P="},
		{"no greylisting: a bare 4.7.1", "rcpt", "450 4.7.1 Client host rejected: cannot find your hostname", "F="},
		{"no greylisting: an address", "rcpt", "450 4.1.1 <grey@example.com>: unverified address", "F="},
		{"no greylisting: an address", "rcpt", "450 4.1.1 <bob@greylist.example>: unverified address", "F="},
		{"no greylisting: a name", "rcpt", "450 4.4.3 Name server for greyhound.example: try again", "F="},
		{"no greylisting: a name", "rcpt", "450 4.4.3 Name server for grey.example: try again", "F="},
		{"no greylisting: a name", "rcpt", "450 4.4.3 Name server for earl-grey: try again", "F="},
		{"no greylisting: a bare 450", "rcpt", "450 Try again", "F="},

		// 452
		{"any", "rcpt", "452 4.5.3 Error: too many recipients", "G="},
		{"any", "rcpt", "452 4.5.3 x", "G="},
		{"any", "rcpt", "452 Too many recipients received this hour", "G="},
		{"bare", "rcpt", "452", "G="},
		{"the code alone", "rcpt", "452 5.5.3", "G="},
		{"another code", "rcpt", "452 5.5.31 x", "F="},
		{"too many at DATA", "data", "452 4.5.3 too many recipients", "F="},
		{"the disk is full", "rcpt", "452 4.3.1 Insufficient system storage", "F+"},
		{"the disk is full", "mail", "452 4.3.1 Insufficient system storage", "F+"},
		{"the disk is full", "rcpt", "452 Insufficient system storage", "F="},
		{"Gmail: the mailbox is full", "rcpt", "452-4.2.2 The recipient's inbox is out of storage space. Please direct the\r\n452 4.2.2 recipient to", "F="},
		{"the mailbox is full", "rcpt", "452 4.2.2 mailbox over its daily quota, too many messages", "F="},
		{"a daily limit for recipients", "rcpt", "452 Daily recipient limit exceeded", "Fq"},
		{"a rate at RCPT", "rcpt", "452 4.4.5 x", "Ft"},

		// the relay's trouble
		{"Postfix", "rcpt", "451 4.3.0 <bob@example.com>: Temporary lookup failure", "F+"},
		{"Postfix", "data", "451 4.3.0 Error: queue file write error", "F+"},
		{"Postfix", "final", "451 4.3.0 Error: queue file write error", "F+"},
		{"Postfix", "rcpt", "451 4.3.5 Server configuration error", "F+"},
		{"Postfix", "mail", "421 4.4.2 mx.example.net Error: timeout exceeded", "F+X"},
		{"Postfix", "mail", "421 4.7.0 mail.example.net Error: too many errors", "F+X"},
		{"Exim", "mail", "421 mail.example.net lost input connection", "F+X"},
		{"errors on this connection", "mail", "421 mail.example.net too many errors on this connection", "F+X"},
		{"STARTTLS", "starttls", "454 4.7.0 TLS not available due to local problem", "F+X"},
		{"AUTH", "auth", "454 4.7.0 Temporary authentication failure", "F+X"},
		{"AUTH, RFC 4954 §6", "auth", "432 4.7.12 A password transition is needed", "F+X"},

		// refusals before MAIL
		{"auth codes at any stage", "banner", "554 5.7.8 x", "FaX"},
		{"auth codes at any stage", "ehlo", "550 5.7.9 x", "FaX"},
		{"auth codes at any stage", "starttls", "538 x", "FaX"},
		{"a recipient's code", "ehlo", "550 5.1.1 x", "F+X"},
		{"a quota's code", "banner", "554 5.4.5 x", "FqX"},
		{"a full mailbox is no quota", "ehlo", "550 5.2.2 too many messages", "F+X"},
		{"the protocol", "ehlo", "502 5.5.1 x", "F+X"},

		// refusals of the sender
		{"Sendmail", "rcpt", "550 5.7.1 <bob@example.com>... Relaying denied. Proper authentication required.", "F=rp"},
		{"Postfix", "rcpt", "454 4.7.1 <bob@example.com>: Relay access denied", "F="},
		{"Exim", "rcpt", "550 relay not permitted", "F=rp"},
		{"Exchange", "rcpt", "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain", "F=rp"},
		{"Exchange", "final", "550 5.7.60 SMTP; Client does not have permissions to send as this sender", "F=rp"},
		{"qmail", "rcpt", "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", "F=rp"},
		{"hMailServer", "rcpt", "550 SMTP authentication is required.", "F=rp"},
		{"SendGrid", "final", "550 The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.", "F=rp"},
		{"Postfix", "rcpt", "553 5.7.1 <alice@example.com>: Sender address rejected: not owned by user bob", "F=rp"},
		{"Postfix", "rcpt", "554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied", "F=rp"},
		{"Postfix", "rcpt", "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", "F=rp"},
		{"Exim", "rcpt", "550 Sender verify failed", "F=rp"},

		// and what looks like one of the above, and isn't
		{"SPF and DKIM", "final", "550-5.7.26 This mail has been blocked because the sender is unauthenticated.\r\n550 5.7.26 Gmail requires all senders to authenticate with either SPF or DKIM.", "P="},
		{"content", "final", "550 5.7.1 Message rated as spam, unusually high score", "P="},
		{"content", "final", "554 5.7.1 rejected: message rated 12.5", "P="},
		{"a loop", "final", "554 5.4.6 Too many hops", "P="},
		{"the recipient's mailbox", "rcpt", "550 Recipient's mailbox exceeded its quota", "P="},
		{"what a recipient may receive", "rcpt", "550 user has exceeded the limit of messages that can be received per hour", "P="},
		{"the recipient's mailbox", "final", "550 mailbox quota exceeded", "P="},
		{"an address in a phrase", "rcpt", "550 <throttled@example.com> unknown", "P="},
		{"an address in a phrase", "rcpt", "450 <throttled@example.com> unknown", "F="},
		{"an address that is no word", "rcpt", "450 4.7.1 too@example.com many messages", "F="},
		{"a phrase beyond what is read", "final", "450-" + strings.Repeat("a", 1000) + "\r\n450-" + strings.Repeat("a", 30) + "\r\n450 throttled", "F="},
	} {
		if tt.stage == "" {
			t.Errorf("no stage: %v", tt)
		}
		f := verdict.Fact{Stage: stage(t, tt.stage), Reply: parse(t, tt.reply), Committed: tt.stage == "final"}
		if got := show(verdict.Judge(f)); got != tt.want {
			t.Errorf("%s: %s: %s: %s, want %s", tt.from, tt.stage, f.Reply, got, tt.want)
		}
	}
}

// everyReply yields replies for the invariants: every code that means something, with each enhanced code that means something and texts of every kind.
func everyReply(yield func(reply.Reply)) {
	details := [][2]uint16{{0, 0}, {1, 0}, {1, 1}, {1, 7}, {1, 8}, {1, 10}, {1, 90}, {2, 0}, {2, 1}, {2, 2}, {2, 3}, {2, 251}, {3, 0}, {3, 1}, {3, 2}, {3, 4}, {3, 5},
		{4, 2}, {4, 5}, {5, 1}, {5, 3}, {6, 7}, {7, 0}, {7, 1}, {7, 8}, {7, 9}, {7, 12}, {7, 27}, {7, 28}, {7, 233}, {7, 650}}
	texts := []string{"", "no", "greylisted", "too many recipients", "too many connections", "daily quota exceeded", "too many messages in this connection",
		"relaying denied", "SendAsDenied", "5.5.3 too many", "STOREDRV.Submission.Exception:SubmissionQuotaExceeded"}
	for _, code := range []int{200, 220, 235, 250, 252, 299, 300, 334, 350, 354, 399, 400, 421, 432, 450, 451, 452, 454, 455, 471, 499,
		500, 501, 502, 503, 504, 505, 521, 530, 534, 535, 538, 550, 551, 552, 553, 554, 555, 556, 571, 599} {
		for _, text := range texts {
			yield(reply.Reply{Code: code, Text: text})
			if c := code / 100; c != 3 {
				for _, d := range details {
					yield(reply.Reply{Code: code, Enhanced: reply.Enhanced{Class: uint16(c), Subject: d[0], Detail: d[1]}, Text: text})
				}
			}
		}
	}
}

func everyFact(yield func(verdict.Fact)) {
	for s := reply.StageNone; s <= reply.StageQuit+1; s++ {
		for flags := range 32 {
			f := verdict.Fact{Stage: s, Committed: flags&1 != 0, Reused: flags&2 != 0, First: flags&4 != 0, LongWait: flags&8 != 0, Shortened: flags&16 != 0}
			for f.Failure = reply.FailNone; f.Failure <= reply.FailSource; f.Failure++ {
				f.Reply = reply.Reply{}
				yield(f)
				f.Reply.Code = 250
				if f.Failure != reply.FailNone {
					yield(f)
				}
			}
			f.Failure = reply.FailNone
			if flags >= 8 { // LongWait and Shortened are for failures
				continue
			}
			everyReply(func(r reply.Reply) { f.Reply = r; yield(f) })
		}
	}
}

func TestJudgeInvariants(t *testing.T) {
	t.Parallel()
	n, failed := 0, 0
	everyFact(func(f verdict.Fact) {
		if failed > 20 {
			return
		}
		n++
		v := verdict.Judge(f)
		r := f.Reply
		replied := f.Failure == reply.FailNone && r.Code != 0
		committed := f.Committed || f.Stage == reply.StageFinal
		transaction := f.Stage >= reply.StageMail && f.Stage <= reply.StageFinal
		after := f.Stage == reply.StageReset || f.Stage == reply.StageQuit
		refused := replied && (r.Temporary() || r.Permanent())
		refusalOfUs := v.Apart || v.Need != verdict.NeedNothing
		for _, rule := range []struct {
			name string
			ok   bool
		}{
			{"every fact has a verdict", v.Move != verdict.Invalid && v.Move <= verdict.Ignore && v.Blame <= verdict.CoolDown},
			{"accepted only with a 2xx to the message", (v.Move == verdict.Accepted) == (replied && r.Positive() && f.Stage == reply.StageFinal)},
			{"no reply behind the commit point is unknown", !(committed && !replied && !after) || v.Move == verdict.Unknown},
			{"unknown only behind the commit point", v.Move != verdict.Unknown || committed},
			{"unknown never keeps the connection", v.Move != verdict.Unknown || v.Discard},
			{"behind the commit point another relay only after a refusal", !(committed && v.Move == verdict.NextRelay) || refused},
			{"behind the commit point never deferred without a refusal", !(committed && v.Move == verdict.Deferred) || refused},
			{"redial only what was idle", v.Move != verdict.Redial || f.Reused && f.First && !committed && transaction},
			{"redial counts nowhere", v.Move != verdict.Redial || v == verdict.Verdict{Move: verdict.Redial, Discard: true}},
			{"failed only by a 5xx in the transaction", v.Move != verdict.Failed || replied && r.Permanent() && transaction},
			{"again only at RCPT, for a 452 or a 5xx, on a connection that stays", v.Move != verdict.Again || f.Stage == reply.StageRcpt && !v.Discard && refused && (r.Code == 452 || r.Permanent())},
			{"ignored: RSET, QUIT, or what goes on", v.Move != verdict.Ignore || after || replied && (r.Positive() || r.Intermediate())},
			{"RSET and QUIT settle nothing and blame nobody", !after || v.Move == verdict.Ignore && v.Blame == verdict.NotCounted},
			{"a refusal of policy is a 5xx in the transaction", !v.Refused || v.Move == verdict.NextRelay && replied && r.Permanent() && transaction},
			{"kept apart only when refused", !v.Apart || v.Refused && v.Blame == verdict.Answered},
			{"only another relay can be needed", v.Need == verdict.NeedNothing || v.Move == verdict.NextRelay},
			{"greylisting is a 4xx to a recipient", !v.Greylist || v.Move == verdict.Deferred && v.Blame == verdict.Answered && replied && r.Temporary() && f.Stage == reply.StageRcpt},
			{"deferred: greylisting, or ours", v.Move != verdict.Deferred || v.Greylist || f.Failure == reply.FailCanceled || f.Failure == reply.FailDeadline || f.Failure == reply.FailSource},
			{"what is ours is not counted", !(f.Failure == reply.FailCanceled || f.Failure == reply.FailSource) || v.Blame == verdict.NotCounted},
			{"a 421 always ends the connection", !(replied && r.Code == 421) || v.Discard},
			{"a failure ends the connection, but for a capability before MAIL", f.Failure == reply.FailNone || v.Discard || f.Failure == reply.FailCapability && !committed && transaction},
			{"a refusal before MAIL ends the connection", !(refused && f.Stage < reply.StageMail) || v.Discard},
			{"a reply before the terminator ends the connection", !(replied && f.Stage == reply.StageBody) || v.Discard},
			{"a reply about a recipient is no fault", !(refused && f.Stage == reply.StageRcpt && v.Blame == verdict.Fault) || r.Code == 421 || r.Temporary() && r.Enhanced.Subject == 3},
			{"a fault at RCPT fails nobody", !(f.Stage == reply.StageRcpt && v.Blame == verdict.Fault) || v.Move != verdict.Failed},
			{"a 2xx is no fault but where it can't be", !(replied && r.Positive() && v.Blame == verdict.Fault) || v.Discard},
			{"throttling only by a 4xx", v.Blame != verdict.Throttle || replied && r.Temporary() && v.Move == verdict.NextRelay},
			{"a quota lets another relay try and is no refusal", v.Blame != verdict.CoolDown || v.Move == verdict.NextRelay && !v.Refused && refused},
			{"auth faults let another relay try and are no refusal", v.Blame != verdict.AuthFault || !v.Refused && !refusalOfUs && v.Discard && (v.Move == verdict.NextRelay || committed)},
		} {
			if !rule.ok {
				t.Errorf("%s: %+v: %s", rule.name, f, show(v))
				failed++
			}
		}
	})
	if n < 500_000 {
		t.Errorf("only %d facts", n)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add(uint8(reply.StageRcpt), uint16(450), uint16(2), uint16(0), "4.2.0 <bob@example.com>: Greylisted, see http://postgrey.example/")
	f.Add(uint8(reply.StageFinal), uint16(421), uint16(7), uint16(28), "4.7.28 a\n4.7.28 @\n\n 1.2.3.4 x@ y\x00\xff")
	f.Add(uint8(reply.StageMail), uint16(552), uint16(0), uint16(0), strings.Repeat("a ", 600))
	f.Add(uint8(reply.StageMail), uint16(550), uint16(0), uint16(0), strings.Repeat(" a@", 600))
	f.Fuzz(func(t *testing.T, s uint8, code, subject, detail uint16, text string) {
		r := reply.Reply{Code: 200 + int(code)%400, Text: text}
		if subject != 0 || detail != 0 {
			r.Enhanced = reply.Enhanced{Class: uint16(r.Code / 100), Subject: subject, Detail: detail}
		}
		fact := verdict.Fact{Stage: reply.Stage(s % uint8(reply.StageQuit+1)), Reply: r}
		v := verdict.Judge(fact)
		if v.Move == verdict.Invalid {
			t.Fatalf("%+v: no verdict", fact)
		}
		if v.Move == verdict.Unknown && fact.Stage != reply.StageFinal {
			t.Fatalf("%+v: unknown before the commit point", fact)
		}
		fact.Committed = true
		if v := verdict.Judge(fact); v.Move == verdict.Redial {
			t.Fatalf("%+v: sent twice", fact)
		}
	})
}

var benchmarks = []struct {
	name string
	fact verdict.Fact
}{
	{"2xx", verdict.Fact{Stage: reply.StageFinal, Reply: reply.Reply{Code: 250, Text: "2.0.0 Ok: queued as 4Wc2Nk1xX3z9rXB"}, Committed: true}},
	{"timeout", verdict.Fact{Stage: reply.StageFinal, Failure: reply.FailTimeout, Committed: true}},
	{"4xx", verdict.Fact{Stage: reply.StageRcpt, Reply: reply.Reply{Code: 450, Enhanced: reply.Enhanced{Class: 4, Subject: 2}, Text: "4.2.0 <bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/example.com.html"}}},
	{"5xx", verdict.Fact{Stage: reply.StageFinal, Committed: true, Reply: reply.Reply{Code: 554, Enhanced: reply.Enhanced{Class: 5, Subject: 7, Detail: 1}, Text: "5.7.1 The message was rejected because it looks like spam to us"}}},
	{"long", verdict.Fact{Stage: reply.StageFinal, Committed: true, Reply: reply.Reply{Code: 554, Text: strings.Repeat("too sender relay daily ", 1400)}}},
}

func TestJudgeDoesNotAllocate(t *testing.T) {
	for _, bb := range benchmarks {
		if n := testing.AllocsPerRun(100, func() { verdict.Judge(bb.fact) }); n != 0 {
			t.Errorf("%s: %v allocations", bb.name, n)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				verdict.Judge(bb.fact)
			}
		})
	}
}
