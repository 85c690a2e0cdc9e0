package smtplb_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// loser is the way to a relay that loses what follows the dot.
type loser struct{ net.Conn }

func (l loser) Write(p []byte) (int, error) {
	if i := bytes.Index(p, []byte("\r\n.\r\n")); i >= 0 {
		if n, err := l.Conn.Write(p[:i+5]); err != nil {
			return n, err
		}
		return len(p), nil
	}
	return l.Conn.Write(p)
}

// Relays that lose what follows the dot cost no message its delivery, and are not blamed: one message tries, and waits.
func TestRelaysThatLoseEnvelopes(t *testing.T) {
	for relays := 1; relays <= 3; relays++ {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, relays, func(c *smtplb.Config) {
				d := c.Dial
				c.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
					nc, err := d(ctx, n, a)
					if err != nil {
						return nil, err
					}
					return loser{nc}, nil
				}
				for i := range c.Relays {
					c.Relays[i].Conns.Max = 8
				}
			})
			defer h.close()
			h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
			pulled, late := 0, 0
			begun := time.Now()
			for r := range h.pool.DeliverAll(t.Context(), letters(300, &pulled), smtplb.Bulk{}) {
				if r.Err != nil || len(r.Receipt.Attempts) != 1 {
					t.Error(r.Receipt, r.Err)
				}
				if r.Receipt.Attempts[0].Duration > 5*time.Second {
					late++
				}
			}
			if late > relays || time.Since(begun) > 15*time.Second {
				t.Errorf("%d relays: %d messages were late, after %v", relays, late, time.Since(begun))
			}
			for _, s := range h.pool.Stats().Relays {
				if s.Faults != 0 || s.Breaker != "closed" || s.Rides != 1 {
					t.Errorf("%s: %d faults, %s, %d rides", s.Name, s.Faults, s.State, s.Rides)
				}
			}
			for i := range 300 {
				if to := fmt.Sprintf("u%d@example.com", i); h.stored(to) != 1 {
					t.Errorf("%s is stored %d times", to, h.stored(to))
				}
			}
		})
	}
}

// After a ride that broke, and a redial, a slow MAIL on the new connection is no lost ride.
func TestSlowMailAfterARide(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1; c.Relays[1].Tier = 1 })
		defer h.close()
		h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
		h.relays[0].On(smtptest.Mail).Nth(2).DropFIN()
		h.relays[0].On(smtptest.Mail).Nth(3).Stall() // on the new connection
		pulled := 0
		for r := range h.pool.DeliverAll(t.Context(), letters(3, &pulled), smtplb.Bulk{}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		time.Sleep(time.Minute) // the trial of the ride that broke is over
		before := h.pool.Stats().Relays[0].Rides
		for r := range h.pool.DeliverAll(t.Context(), letters(50, &pulled), smtplb.Bulk{}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		if s := h.pool.Stats().Relays[0]; s.Rides == before {
			t.Errorf("nobody rides: %d, state %s", s.Rides, s.State)
		}
	})
}

// Nobody rides with a relay whose last answer took so long that a round trip is nothing beside it.
func TestNoRideWithASlowRelay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := single(t)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(600 * time.Millisecond)
		pulled := 0
		for r := range h.pool.DeliverAll(t.Context(), letters(20, &pulled), smtplb.Bulk{}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		if n := h.pool.Stats().Relays[0].Rides; n > 2 {
			t.Errorf("%d rides", n)
		}
	})
}

// A sequence over an archive: each body is a Reader that is good until the next envelope is asked for.
func TestDeliverAllFromAnArchive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		for i := range 50 {
			msg := fmt.Sprintf("From: a@example.com\r\nSubject: %d\r\n\r\n%s", i, strings.Repeat("text\r\n", 20000))
			if i == 7 {
				msg = "Subject: a NUL\r\n\r\n\x00"
			}
			_ = w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Size: int64(len(msg)), Mode: 0o600})
			_, _ = w.Write([]byte(msg))
		}
		_ = w.Close()
		tr := tar.NewReader(&archive)
		seq := func(yield func(*smtplb.Envelope) bool) {
			for {
				hdr, err := tr.Next()
				if err != nil || !yield(&smtplb.Envelope{ID: hdr.Name, From: "a@example.com", To: []string{"u" + hdr.Name + "@example.com"}, Body: smtplb.Reader(tr)}) {
					return
				}
			}
		}
		n := 0
		for r := range h.pool.DeliverAll(t.Context(), seq, smtplb.Bulk{}) {
			if n++; (r.Err != nil) != (r.Envelope.ID == "7") {
				t.Error(r.Envelope.ID, r.Err)
			}
		}
		for _, m := range h.relays[0].Messages() {
			if want := strings.TrimSuffix(strings.TrimPrefix(m.To[0], "u"), "@example.com"); m.Header.Get("Subject") != want || len(m.Data) < 120_000 {
				t.Errorf("%s has %d bytes, with the subject %s", want, len(m.Data), m.Header.Get("Subject"))
			}
		}
		if n != 50 || len(h.relays[0].Messages()) != 49 {
			t.Errorf("%d results, %d stored", n, len(h.relays[0].Messages()))
		}
	})
}

// Each connection may have been told another token, and a relay that repeats an old one tells nobody.
func TestEveryTokenIsRedacted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var n atomic.Int32
		token := func(i int32) string { return fmt.Sprintf("token-number-%d-xyz", i) }
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Conns.Max = 2
			c.Relays[0].Addr = "localhost:25"
			d := c.Dial
			c.Dial = func(ctx context.Context, n, _ string) (net.Conn, error) { return d(ctx, n, "r0.test:25") }
			c.Relays[0].Auth = smtplb.TokenAuth("user", func(context.Context, smtplb.AuthRequest) (string, error) { return token(n.Add(1)), nil })
		}, smtptest.WithAuth("user", "x", "XOAUTH2"))
		defer h.close()
		h.relays[0].On(smtptest.Auth).Reply(235, "2.7.0 yes")
		h.relays[0].On(smtptest.Rcpt).For("first@example.com").Delay(time.Second).Reply(550, "5.7.1 not with "+token(1))
		first := h.async(t.Context(), envelope("first@example.com"))
		time.Sleep(10 * time.Millisecond)
		<-h.async(t.Context(), envelope("second@example.com"))
		r := <-first
		if n.Load() != 2 || !errors.Is(r.Err, smtplb.ErrPermanent) || strings.Contains(r.Err.Error(), token(1)) {
			t.Errorf("%d tokens: %v", n.Load(), r.Err)
		}
	})
}

// REQUIRETLS counts over a verified certificate only (RFC 8689 §4.2.1).
func TestRequireTLS(t *testing.T) {
	for _, verified := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			s := n.NewServer("relay.test:587", smtptest.WithRequireTLS(), smtptest.WithTLSExtensions("REQUIRETLS"))
			defer s.Close()
			tc := s.ClientTLS()
			tc.ServerName = "relay.test"
			tc.InsecureSkipVerify = !verified
			p, err := smtplb.New(smtplb.Config{Dial: n.DialContext, Relays: []smtplb.Relay{{Addr: s.Addr, TLS: smtplb.TLSStartTLS, TLSConfig: tc}}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			e := envelope("x@example.com")
			e.RequireTLS = true
			_, err = p.Deliver(t.Context(), e)
			switch {
			case verified && (err != nil || !strings.Contains(s.Transcript(), "REQUIRETLS\n")):
				t.Errorf("%v\n%s", err, s.Transcript())
			case !verified && (!errors.Is(err, smtplb.ErrPermanent) || !strings.Contains(err.Error(), "REQUIRETLS") || len(s.Messages()) != 0):
				t.Errorf("unverified: %v", err)
			}
		})
	}
}

// A relay that loses envelopes is found out although its callers are in a hurry.
func TestRelayThatLosesEnvelopesInAHurry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			d := c.Dial
			c.Relays[0].Conns.Max = 1
			c.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
				nc, err := d(ctx, n, a)
				if err != nil {
					return nil, err
				}
				return loser{nc}, nil
			}
		})
		defer h.close()
		h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
		for wave := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			failed := 0
			var all []<-chan smtplb.Result
			for i := range 20 {
				all = append(all, h.async(ctx, envelope(fmt.Sprintf("w%du%d@example.com", wave, i))))
			}
			for _, done := range all {
				if r := <-done; r.Err != nil {
					failed++
				}
			}
			cancel()
			if wave > 0 && failed > 0 {
				t.Errorf("wave %d: %d failed", wave, failed)
			}
		}
		if n := h.pool.Stats().Relays[0].Rides; n != 1 {
			t.Errorf("%d rides", n)
		}
	})
}

// A Reader that was never asked can still be sent.
func TestRetryOfAReaderThatWasNotRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e := envelope("x@example.com")
		e.Body = smtplb.Reader(strings.NewReader(text))
		r, err := h.pool.Deliver(ctx, e)
		if !errors.Is(err, context.Canceled) || outcomes(r) != "deferred" {
			t.Fatalf("%v: %v", r, err)
		}
		if _, err := h.pool.Deliver(t.Context(), r.Retry(e)); err != nil || h.stored("x@example.com") != 1 {
			t.Error(err)
		}
	})
}

// A process that is out of files can't blame its relays for it.
func TestOutOfFilesIsNobodysFault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		full := true
		h := newHouse(t, 2, func(c *smtplb.Config) {
			d := c.Dial
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if full {
					return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("socket", syscall.EMFILE)}
				}
				return d(ctx, network, addr)
			}
		})
		defer h.close()
		for range 20 {
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if !errors.Is(err, smtplb.ErrTemporary) || !errors.Is(err, syscall.EMFILE) || len(r.Attempts) != 2 {
				t.Fatalf("%v: %v", r, err)
			}
		}
		for _, s := range h.pool.Stats().Relays {
			if s.Faults != 0 || s.Breaker != "closed" {
				t.Errorf("%s: %d faults, %s", s.Name, s.Faults, s.State)
			}
		}
		full = false
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Error(err)
		}
	})
}
