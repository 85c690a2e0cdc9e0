package smtplb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

const text = "From: a@example.com\r\nSubject: hello\r\n\r\nHello.\r\n"

// house is some relays in memory, and a pool over them, in a bubble of fake time.
type house struct {
	*testing.T
	net    *smtptest.Network
	relays []*smtptest.Server
	pool   *smtplb.Pool
}

// newHouse starts n plain relays named r0, r1, …; change may alter the configuration.
func newHouse(t *testing.T, n int, change func(c *smtplb.Config), opts ...smtptest.Option) *house {
	h := &house{T: t, net: smtptest.NewNetwork()}
	c := smtplb.Config{Dial: h.net.DialContext}
	for i := range n {
		addr := fmt.Sprintf("r%d.test:25", i)
		h.relays = append(h.relays, h.net.NewServer(addr, opts...))
		c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprintf("r%d", i), Addr: addr, TLS: smtplb.TLSNone})
	}
	if change != nil {
		change(&c)
	}
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	h.pool = pool
	return h
}

func (h *house) close() {
	h.Helper()
	h.pool.Close()
	for _, r := range h.relays {
		r.Close()
	}
	for _, r := range h.pool.Stats().Relays {
		if r.InFlight != 0 || r.Waiting != 0 || r.Idle != 0 {
			h.Errorf("left behind in %s: %d in flight, %d waiting, %d idle", r.Name, r.InFlight, r.Waiting, r.Idle)
		}
	}
	if n := h.pool.Stats().InFlight; n != 0 {
		h.Errorf("%d sends in flight at the end", n)
	}
}

// stored is how many messages hold the recipient, over all relays.
func (h *house) stored(to string) int {
	n := 0
	for _, r := range h.relays {
		for _, m := range r.Messages() {
			for _, x := range m.To {
				if x == to {
					n++
				}
			}
		}
	}
	return n
}

func envelope(to ...string) *smtplb.Envelope {
	return &smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Bytes([]byte(text))}
}

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// outcomes is the receipt's outcomes as words.
func outcomes(r *smtplb.Receipt) string {
	var s []string
	for _, x := range r.Recipients {
		s = append(s, x.Outcome.String())
	}
	return strings.Join(s, " ")
}

func relaysTried(r *smtplb.Receipt) string {
	var s []string
	for _, a := range r.Attempts {
		s = append(s, a.Relay)
	}
	return strings.Join(s, " ")
}

func TestDeliver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		e := envelope("x@example.com", "y@EXAMPLE.org")
		e.ID = "42"
		r, err := h.pool.Deliver(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		if r.ID != "42" || outcomes(r) != "accepted accepted" || relaysTried(r) != "r0" {
			t.Fatalf("%+v", r)
		}
		x := r.Recipients[1]
		if x.Addr != "y@EXAMPLE.org" || x.Relay != "r0" || x.Stage != smtplb.StageFinal || x.Reply.Code != 250 || x.QueueID == "" || x.Err() != nil {
			t.Errorf("%+v", x)
		}
		m := h.relays[0].Messages()
		if len(m) != 1 || string(m[0].Data) != text || m[0].QueueID != x.QueueID || fmt.Sprint(m[0].To) != "[x@example.com y@example.org]" {
			t.Errorf("stored %v", m)
		}
	})
}

func TestReusesConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		for i := range 250 {
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			if reused := i%100 != 0; r.Attempts[0].Reused != reused {
				t.Fatalf("message %d: reused %v", i, r.Attempts[0].Reused)
			}
		}
		if s := h.relays[0].Stats(); s.Connections != 3 { // 100 messages each
			t.Errorf("%d connections", s.Connections)
		}
		time.Sleep(time.Minute)
		if s := h.pool.Stats().Relays[0]; s.Idle != 0 || s.Closed["idle"] != 1 || s.Closed["uses"] != 2 {
			t.Errorf("after a minute: %+v", s)
		}
	})
}

func TestWeights(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) { c.Relays[0].Weight, c.Relays[1].Weight = 5, 2 })
		defer h.close()
		for range 800 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range []int{500, 200, 100} {
			if got := len(h.relays[i].Messages()); got < want-1 || got > want+1 {
				t.Errorf("relay %d got %d, want %d", i, got, want)
			}
		}
	})
}

func TestTiers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) { c.Relays[0].Tier, c.Relays[2].Tier = 1, 2 })
		defer h.close()
		send := func(want string) {
			t.Helper()
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if err != nil || relaysTried(r) != want {
				t.Fatalf("tried %s, want %s: %v", relaysTried(r), want, err)
			}
		}
		send("r1")
		h.relays[1].Kill()
		send("r1 r0")
		h.relays[0].Kill()
		send("r1 r0 r2")
		for range 3 {
			send("r1 r0 r2")
		}
		// r1 had five faults by now: its breaker is open
		send("r0 r2")
		h.relays[1].Restart()
		time.Sleep(time.Minute)
		send("r1")
	})
}

func TestDuplicateRecipients(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com", "y@example.com", "x@EXAMPLE.COM", "X@example.com"))
		if err != nil || outcomes(r) != "accepted accepted accepted accepted" {
			t.Fatalf("%v: %v", r, err)
		}
		if got := fmt.Sprint(h.relays[0].Messages()[0].To); got != "[x@example.com y@example.com X@example.com]" {
			t.Errorf("sent to %s", got)
		}
		var many []string
		for i := range 300 {
			many = append(many, fmt.Sprintf("u%d@example.com", i%150))
		}
		r, err = h.pool.Deliver(t.Context(), envelope(many...))
		if err != nil || len(r.Recipients) != 300 {
			t.Fatalf("%v: %v", r, err)
		}
		for i := range 150 {
			if n := h.stored(fmt.Sprintf("u%d@example.com", i)); n != 1 {
				t.Errorf("u%d: stored %d times", i, n)
			}
		}
	})
}

// 250 recipients go out in transactions of 100, on one connection.
func TestSplitsRecipients(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil, smtptest.WithMaxRecipients(60)) // 452 4.5.3 beyond
		defer h.close()
		var to []string
		for i := range 250 {
			to = append(to, fmt.Sprintf("u%d@example.com", i))
		}
		r, err := h.pool.Deliver(t.Context(), envelope(to...))
		if err != nil || r.Count(smtplb.Accepted) != 250 || len(r.Attempts) != 1 || r.Attempts[0].Accepted != 250 {
			t.Fatalf("%v: %v", r, err)
		}
		for _, x := range to {
			if n := h.stored(x); n != 1 {
				t.Errorf("%s: stored %d times", x, n)
			}
		}
		if s := h.relays[0].Stats(); s.Connections != 1 {
			t.Errorf("%d connections", s.Connections)
		}
	})
}

// Relays that close idle connections, or say 421 on them, cost no attempt and no error.
// A relay that doesn't answer costs its share of the caller's time, not all of it.
func TestBodySourceFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		broken := errors.New("disk on fire")
		e := envelope("x@example.com", "y@example.com")
		e.Body = smtplb.Reader(io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)))
		r, err := h.pool.Deliver(t.Context(), e)
		var se *smtplb.SourceError
		if outcomes(r) != "deferred deferred" || !errors.Is(err, broken) || !errors.Is(err, smtplb.ErrTemporary) || !errors.As(err, &se) || len(r.Attempts) != 0 {
			t.Fatalf("%v: %v", r, err)
		}
		e.Body = smtplb.File("does-not-exist.eml")
		if _, err := h.pool.Deliver(t.Context(), e); !errors.As(err, &se) {
			t.Fatal(err)
		}
		msg := mail.NewMsg()
		_ = msg.From("a@example.com")
		_ = msg.To("x@example.com")
		msg.SetBodyWriter(mail.TypeTextPlain, func(w io.Writer) (int64, error) {
			n, _ := io.WriteString(w, "half of ")
			return int64(n), broken
		})
		r, err = h.pool.Send(t.Context(), msg)
		if r == nil || outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrTemporary) {
			t.Fatalf("%v: %v", r, err)
		}
		if s := h.relays[0].Stats(); s.Connections != 0 {
			t.Error("a relay was bothered")
		}
	})
}

// What a Reader gave can be sent again, though it can be read only once.
func TestRetryOfAReader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.5.0 later")
		e := envelope("x@example.com")
		e.Body = smtplb.Reader(strings.NewReader(text))
		r, err := h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrTemporary) {
			t.Fatal(err)
		}
		if _, err := h.pool.Deliver(t.Context(), r.Retry(e)); err != nil {
			t.Fatal(err)
		}
		if string(h.relays[0].Messages()[0].Data) != text {
			t.Errorf("stored %q", h.relays[0].Messages()[0].Data)
		}
	})
}

func TestSend(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		msg := mail.NewMsg()
		_ = msg.From("a@example.com")
		_ = msg.EnvelopeFrom("bounces@example.com")
		_ = msg.To("x@example.com")
		_ = msg.Cc("y@example.com")
		_ = msg.Bcc("z@example.com")
		msg.Subject("Grüße")
		msg.SetBodyString(mail.TypeTextPlain, "Hello.\n.\nBye")
		if _, err := h.pool.Send(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		m := h.relays[0].Messages()[0]
		if m.From != "bounces@example.com" || fmt.Sprint(m.To) != "[x@example.com y@example.com z@example.com]" || m.Header.Get("Bcc") != "" || bytes.Contains(m.Data, []byte("z@example")) {
			t.Errorf("%v\n%s", m, m.Data)
		}
		if _, err := h.pool.Send(t.Context(), mail.NewMsg()); !errors.Is(err, smtplb.ErrPermanent) {
			t.Error(err)
		}
		if _, err := h.pool.Send(t.Context(), nil); !errors.Is(err, smtplb.ErrPermanent) {
			t.Error(err)
		}
	})
}

func TestSendMail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		if err := h.pool.SendMail("ignored:25", nil, "", []string{"x@example.com"}, []byte("Subject: a\n\nb\n.c\rd")); err != nil {
			t.Fatal(err)
		}
		if m := h.relays[0].Messages()[0]; string(m.Data) != "Subject: a\r\n\r\nb\r\n.c\r\nd\r\n" || m.From != "" {
			t.Errorf("%q from %q", m.Data, m.From)
		}
		h.relays[0].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		err := h.pool.SendMail("", nil, "a@example.com", []string{"x@example.com", "gone@example.com"}, []byte("b"))
		var tp *textproto.Error
		if !errors.As(err, &tp) || tp.Code != 550 || len(h.relays[0].Messages()) != 1 {
			t.Errorf("%v", err)
		}
		if err := h.pool.SendMail("", nil, "a@example.com\r\nRSET", []string{"x@example.com"}, nil); !errors.Is(err, smtplb.ErrPermanent) {
			t.Error(err)
		}
	})
}

func TestCloseAndShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 3 })
		defer h.close()
		h.relays[0].On(smtptest.Data).For("before@example.com").Stall()
		h.relays[0].On(smtptest.EndOfData).For("after@example.com").Stall()
		h.relays[0].On(smtptest.EndOfData).For("slow@example.com").Delay(10 * time.Second)
		results := map[string]error{}
		receipts := map[string]*smtplb.Receipt{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, to := range []string{"before@example.com", "after@example.com", "slow@example.com", "waiting@example.com"} {
			wg.Go(func() {
				r, err := h.pool.Deliver(t.Context(), envelope(to))
				mu.Lock()
				defer mu.Unlock()
				results[to], receipts[to] = err, r
			})
			time.Sleep(time.Second)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun := time.Now()
		if err := h.pool.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 20*time.Second {
			t.Errorf("Shutdown: %v after %v", err, time.Since(begun))
		}
		wg.Wait()
		if time.Since(begun) != 20*time.Second {
			t.Errorf("the last send ended %v after Shutdown", time.Since(begun))
		}
		for to, want := range map[string]string{"before@example.com": "deferred", "after@example.com": "unknown", "slow@example.com": "accepted", "waiting@example.com": "accepted"} {
			if got := outcomes(receipts[to]); got != want {
				t.Errorf("%s is %s, want %s: %v", to, got, want, results[to])
			}
			if want == "deferred" || want == "unknown" {
				if !errors.Is(results[to], smtplb.ErrClosed) {
					t.Errorf("%s: %v", to, results[to])
				}
			}
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !errors.Is(err, smtplb.ErrClosed) || outcomes(r) != "deferred" {
			t.Errorf("after Close: %v: %v", r, err)
		}
	})
}

func TestShutdownSaysQuit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Fatal(err)
		}
		if err := h.pool.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(h.relays[0].Transcript(), "QUIT") {
			t.Errorf("no QUIT in\n%s", h.relays[0].Transcript())
		}
	})
}

// A thousand sends over three relays of four connections each: nobody is lost, no limit is exceeded, all is given back.
func TestCrowd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var open, most [3]atomic.Int32
		h := newHouse(t, 3, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 4
				c.Relays[i].Dial = count(c.Dial, &open[i], &most[i])
			}
		})
		defer h.close()
		for _, s := range h.relays {
			s.On(smtptest.EndOfData).Every(5).Delay(200 * time.Millisecond)
		}
		var wg sync.WaitGroup
		var unknown atomic.Int64
		for i := range 1000 {
			wg.Go(func() {
				to := fmt.Sprintf("u%d@example.com", i)
				r, err := h.pool.Deliver(t.Context(), envelope(to))
				switch n := h.stored(to); {
				case outcomes(r) == "accepted" && n == 1 && err == nil:
				case outcomes(r) == "unknown" && n <= 1 && errors.Is(err, smtplb.ErrUnknown):
					unknown.Add(1)
				default:
					t.Errorf("%s is %s, stored %d times: %v", to, outcomes(r), n, err)
				}
			})
		}
		time.Sleep(3 * time.Second)
		h.relays[1].Kill()
		wg.Wait()
		if unknown.Load() > 4 {
			t.Errorf("%d are unknown, and the killed relay had 4 connections", unknown.Load())
		}
		for i := range most {
			if m := most[i].Load(); m > 4 {
				t.Errorf("%d connections at a time", m)
			}
		}
	})
}

// Ten thousand waiting sends that are cancelled leave nothing behind.
func TestCancelledWaiters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1 })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Minute)
		go h.pool.Deliver(t.Context(), envelope("first@example.com"))
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var deferred atomic.Int64
		for range 10000 {
			wg.Go(func() {
				r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
				if errors.Is(err, context.Canceled) && outcomes(r) == "deferred" && len(r.Attempts) == 0 {
					deferred.Add(1)
				}
			})
		}
		synctest.Wait()
		if s := h.pool.Stats(); s.Waiting != 10000 || s.InFlight != 10001 {
			t.Fatalf("%d wait, %d in flight", s.Waiting, s.InFlight)
		}
		cancel()
		wg.Wait()
		if deferred.Load() != 10000 {
			t.Errorf("%d were deferred", deferred.Load())
		}
		if s := h.pool.Stats(); s.Waiting != 0 || s.InFlight != 1 {
			t.Errorf("%d wait, %d in flight", s.Waiting, s.InFlight)
		}
		time.Sleep(2 * time.Minute)
		if _, err := h.pool.Deliver(t.Context(), envelope("last@example.com")); err != nil {
			t.Error(err)
		}
	})
}

// A panic in the caller's own code gives the slot back.
func TestPanicGivesTheSlotBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		boom := true
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Conns.Max = 1
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if boom {
					panic("boom")
				}
				return dial(ctx, network, addr)
			}
		})
		defer h.close()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			h.pool.Deliver(t.Context(), envelope("x@example.com"))
		}()
		boom = false
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Error(err)
		}
	})
}

func TestHooks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type key struct{}
		var log []string
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[1].Tier = 1
			c.Hooks.AttemptStart = func(ctx context.Context, a smtplb.AttemptInfo) func(smtplb.Attempt) {
				log = append(log, fmt.Sprint(ctx.Value(key{}), " start ", a.EnvelopeID, a.Relay, a.Number))
				return func(a smtplb.Attempt) { log = append(log, fmt.Sprint("end ", a.Relay, " ", a.Stage, a.Err != nil)) }
			}
			c.Hooks.Done = func(ctx context.Context, r *smtplb.Receipt, err error) {
				log = append(log, fmt.Sprint("done ", r.ID, err))
			}
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(451, "4.5.0 later")
		e := envelope("x@example.com")
		e.ID = "id"
		if _, err := h.pool.Deliver(context.WithValue(t.Context(), key{}, "v"), e); err != nil {
			t.Fatal(err)
		}
		want := "v start idr01|end r0 mail true|v start idr12|end r1 final false|done id <nil>"
		if got := strings.Join(log, "|"); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%s", got)
		}
	})
}
