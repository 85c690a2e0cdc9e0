package conformance

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Sender sends one message through the relay r, to all of to, and returns nil if,
// and only if, the relay accepted it for every recipient.
//
// from and to are addresses without angle brackets. msg is header and body; most
// cases give it CRLF line ends. A Sender may encode the body anew (quoted-printable,
// base64, other line ends), the text must stay what it is.
//
// A Sender ends when ctx does, within a grace of a few seconds. It does not send again
// by itself what the relay may have accepted.
//
// A Sender is called several times at once, but not for one Relay: there one call
// follows the other, and it may keep a connection between them; see Keep.
type Sender func(ctx context.Context, r *Relay, from string, to []string, msg []byte) error

// A ReaderSender is a Sender that reads its message.
type ReaderSender func(ctx context.Context, r *Relay, from string, to []string, msg io.Reader) error

// Relay is where a Sender is to send to.
type Relay struct {
	// Addr is "127.0.0.1:2525", say.
	Addr string
	// TLS is nil where no encryption is wanted. Else STARTTLS is required, and this
	// configuration to be used: it trusts Authority, and names the server. A Sender that takes no
	// configuration must be brought to trust Authority, by SSL_CERT_FILE say.
	TLS *tls.Config
	// Username and Password are for AUTH (PLAIN and LOGIN are offered), and only to be
	// shown to a relay under TLS. Empty: no AUTH.
	Username, Password string
	// Patience is how long the relay is to be waited for: ctx ends as long after the call. A
	// Sender that looks at no context, or goes on for longer, sets its timeouts from this.
	Patience time.Duration

	mu    sync.Mutex // protects the following fields
	kept  any
	close func()
}

// Keep returns what open returned in the first call for this Relay: a client, or a
// pool of connections, that is to live from one message to the next. The function
// that open returns beside it is called when the case is over; it must close all
// connections. An error of open is returned and not kept.
func Keep[T any](r *Relay, open func() (T, func(), error)) (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok := r.kept.(T); ok {
		return v, nil
	}
	v, end, err := open()
	if err == nil {
		r.kept, r.close = v, end
	}
	return v, err
}

func (r *Relay) release() {
	r.mu.Lock()
	end := r.close
	r.kept, r.close = nil, nil
	r.mu.Unlock()
	if end != nil {
		end()
	}
}

// Option sets something for Run and Check.
type Option func(*config)

type config struct {
	temporary func(error) bool
	reader    ReaderSender
	known     map[string]string
	only      func(name string) bool
}

// Temporary tells the kit how to ask an error of the Sender whether it is worth
// sending the message again later. Cases of a refusal with 4xx and 5xx then look at
// it; without it they look at no more than that there is an error.
func Temporary(is func(error) bool) Option { return func(c *config) { c.temporary = is } }

// FromReader adds the cases of a message that comes from an io.Reader; without it
// they are skipped.
func FromReader(s ReaderSender) Option { return func(c *config) { c.reader = s } }

// Known names cases that the Sender is known to fail, and why. Run then reports it
// when such a case passes, and when any other fails.
func Known(failures map[string]string) Option { return func(c *config) { c.known = failures } }

// Only restricts Run and Check to the cases for whose names f returns true.
func Only(f func(name string) bool) Option { return func(c *config) { c.only = f } }

// Case is one case of the kit.
type Case struct {
	Name string // "reply-lost", say
	Why  string // a sentence that says why it matters

	opts    []option      // of the relay
	cert    func() option // its certificate; nil: one that is in order
	secure  bool          // the sender is to use TLS
	account bool          // the sender is to use AUTH
	hangs   bool          // the relay hangs: the sender gets little time
	reader  bool          // of a message from an io.Reader
	run     func(*trial)
}

// Cases returns all cases in their order.
func Cases() []Case {
	var all []Case
	for _, group := range [...][]Case{messageCases, envelopeCases, replyCases(), commitCases, timeCases, reuseCases, tlsCases} {
		all = append(all, group...)
	}
	return all
}

// Status is how a case went.
type Status uint8

// The statuses.
const (
	Passed Status = iota + 1
	Failed
	Skipped // the case doesn't apply: see FromReader
)

var statusNames = [...]string{"?", "passed", "failed", "skipped"}

// String returns "passed", "failed" or "skipped".
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", s)
}

// Outcome is how a Sender did in one case.
type Outcome struct {
	Case       Case
	Status     Status
	Problems   []string // what is wrong; empty unless Failed
	Took       time.Duration
	Transcript string // what was said
}

// String returns the case's name, its status and the problems.
func (o Outcome) String() string {
	s := o.Case.Name + ": " + o.Status.String()
	if len(o.Problems) > 0 {
		s += ": " + strings.Join(o.Problems, "; ")
	}
	return s
}

// Run runs s through the cases, each of which is a subtest of t.
func Run(t *testing.T, s Sender, opts ...Option) {
	t.Helper()
	cfg := newConfig(opts)
	cases := cfg.cases()
	for name := range cfg.known {
		if !contains(Cases(), name) {
			t.Errorf("Known: there is no case %q", name)
		}
	}
	pending := start(s, cfg, cases)
	for i, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			o := <-pending[i]
			why, known := cfg.known[c.Name]
			switch {
			case o.Status == Skipped:
				t.Log("does not apply")
			case o.Status == Failed && known:
				t.Logf("known to fail (%s): %s", why, strings.Join(o.Problems, "; "))
			case o.Status == Failed:
				t.Errorf("%s\n%s\n\n%s", strings.Join(o.Problems, "\n"), c.Why, o.Transcript)
			case known:
				t.Errorf("passes, and is said to be known to fail: %s", why)
			}
		})
	}
}

// Check runs s through the cases and returns how it did, in the order of Cases.
func Check(s Sender, opts ...Option) []Outcome {
	cfg := newConfig(opts)
	pending := start(s, cfg, cfg.cases())
	all := make([]Outcome, len(pending))
	for i := range pending {
		all[i] = <-pending[i]
	}
	return all
}

func newConfig(opts []Option) *config {
	cfg := &config{only: func(string) bool { return true }}
	for _, o := range opts {
		o(cfg)
	}
	return cfg
}

func (cfg *config) cases() []Case {
	var some []Case
	for _, c := range Cases() {
		if cfg.only(c.Name) {
			some = append(some, c)
		}
	}
	return some
}

func contains(cases []Case, name string) bool {
	for _, c := range cases {
		if c.Name == name {
			return true
		}
	}
	return false
}

// parallel is how many cases run at the same time. Most of them wait.
const parallel = 32

// start begins to run the cases; each outcome comes through its channel.
func start(s Sender, cfg *config, cases []Case) []chan Outcome {
	out := make([]chan Outcome, len(cases))
	for i := range out {
		out[i] = make(chan Outcome, 1)
	}
	go func() {
		slots := make(chan struct{}, parallel)
		for i, c := range cases {
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				out[i] <- try(s, cfg, c)
			}()
		}
	}()
	return out
}
