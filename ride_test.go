package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// single makes a house of one relay, with one connection and a round trip in which others can queue up.
func single(t *testing.T, opts ...smtptest.Option) *house {
	h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1 }, opts...)
	h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
	return h
}

// async delivers e in the background.
func (h *house) async(ctx context.Context, e *smtplb.Envelope) <-chan smtplb.Result {
	done := make(chan smtplb.Result, 1)
	go func() {
		r, err := h.pool.Deliver(ctx, e)
		done <- smtplb.Result{Envelope: e, Receipt: r, Err: err}
	}()
	return done
}

// Who sends again to be sure sends to fewer than are pending, and doesn't ride.
func TestNoRideForASecondTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := single(t)
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("y@example.com").Nth(1).Reply(451, "4.2.0 later")
		h.relays[0].On(smtptest.EndOfData).Nth(1).Drop()
		e := envelope("x@example.com", "y@example.com")
		e.AtLeastOnce = true
		first := h.async(t.Context(), e)
		time.Sleep(25 * time.Millisecond) // connected: these two come in front of the second try, and one rides
		others := []<-chan smtplb.Result{h.async(t.Context(), envelope("a@example.com")), h.async(t.Context(), envelope("b@example.com"))}
		r := <-first
		if got := outcomes(r.Receipt); !strings.HasPrefix(got, "accepted") || len(r.Receipt.Attempts) != 2 || r.Receipt.Attempts[1].Rode {
			t.Errorf("%s: %v: %+v", got, r.Err, r.Receipt.Attempts)
		}
		for _, o := range others {
			if r := <-o; r.Err != nil {
				t.Error(r.Err)
			}
		}
		if n := h.stored("x@example.com"); n != 2 { // the first answer was lost
			t.Errorf("x has it %d times", n)
		}
		if s := h.pool.Stats().Relays[0]; s.Faults != 1 {
			t.Errorf("%d faults, want that of the lost answer", s.Faults)
		}
	})
}

// Nobody rides on a connection's last message by MAILMAX (RFC 9422): it ends with a QUIT.
func TestNoRideBehindTheLastMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := single(t, smtptest.WithExtensions("PIPELINING", "LIMITS MAILMAX=4"))
		pulled := 0
		for r := range h.pool.DeliverAll(t.Context(), letters(40, &pulled), smtplb.Bulk{}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		h.close()
		s := h.pool.Stats().Relays[0]
		quits := strings.Count(h.relays[0].Transcript(), "QUIT")
		if s.Opened != 10 || s.Rides < 20 || quits < 9 {
			t.Errorf("%d connections, %d rides, %d QUITs", s.Opened, s.Rides, quits)
		}
	})
}

// Nobody rides in the middle of a message whose recipients need another transaction.
func TestNoRideBeforeTheRest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := single(t)
		defer h.close()
		var many []string
		for i := range 250 {
			many = append(many, fmt.Sprintf("u%d@example.com", i))
		}
		first := h.async(t.Context(), envelope(many...))
		time.Sleep(time.Millisecond)
		second := h.async(t.Context(), envelope("x@example.com"))
		for _, done := range []<-chan smtplb.Result{first, second} {
			if r := <-done; r.Err != nil || len(r.Receipt.Attempts) != 1 {
				t.Error(r.Receipt, r.Err)
			}
		}
		if s := h.pool.Stats().Relays[0]; s.Opened != 1 || s.Faults != 0 || s.Rides != 1 {
			t.Errorf("%d connections, %d faults, %d rides", s.Opened, s.Faults, s.Rides)
		}
		for _, to := range append(many, "x@example.com") {
			if h.stored(to) != 1 {
				t.Errorf("%s is stored %d times", to, h.stored(to))
			}
		}
	})
}

// A relay that refuses one message after the other isn't met with a new connection for each.
func TestRidesWithARelayThatRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := single(t)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Reply(554, "5.7.1 Spam")
		pulled := 0
		for r := range h.pool.DeliverAll(t.Context(), letters(50, &pulled), smtplb.Bulk{}) {
			if !errors.Is(r.Err, smtplb.ErrPermanent) || len(r.Receipt.Attempts) != 1 {
				t.Error(r.Receipt, r.Err)
			}
		}
		if s := h.pool.Stats().Relays[0]; s.Opened > 3 {
			t.Errorf("%d connections for 50 refused messages", s.Opened)
		}
	})
}

// A rider that is cancelled goes at once; the connection that carries its envelope is not used again, and those behind it in the queue go on.
func TestRiderIsCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := single(t)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Nth(1).Delay(400 * time.Millisecond)
		first := h.async(t.Context(), envelope("first@example.com"))
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		second := h.async(ctx, envelope("second@example.com"))
		time.Sleep(time.Millisecond)
		third := h.async(t.Context(), envelope("third@example.com"))
		time.Sleep(200 * time.Millisecond)
		cancel()
		synctest.Wait()
		select {
		case r := <-second:
			if !errors.Is(r.Err, context.Canceled) || !errors.Is(r.Err, smtplb.ErrTemporary) || len(r.Receipt.Attempts) != 0 {
				t.Errorf("%v: %v", r.Receipt, r.Err)
			}
		default:
			t.Error("the cancelled rider is not back")
		}
		for _, done := range []<-chan smtplb.Result{first, third} {
			if r := <-done; r.Err != nil {
				t.Error(r.Err)
			}
		}
		if n := h.stored("second@example.com"); n != 0 || len(h.relays[0].Messages()) != 2 {
			t.Errorf("the cancelled one is stored %d times", n)
		}
		if s := h.pool.Stats().Relays[0]; s.Faults != 0 || s.Opened != 2 {
			t.Errorf("%d faults, %d connections", s.Faults, s.Opened)
		}
	})
}

// A rider does not wait for a slow answer to somebody else's message when another connection is free.
func TestRiderLeavesForAFreeRelay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Conns.Max, c.Relays[1].Conns.Max = 1, 1
		})
		defer h.close()
		h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
		h.relays[0].On(smtptest.EndOfData).Nth(1).Delay(time.Minute)
		h.relays[1].On(smtptest.EndOfData).Nth(1).Delay(3 * time.Second)
		var all []<-chan smtplb.Result
		begun := time.Now()
		for i := range 4 { // one on each relay, and one behind each
			all = append(all, h.async(t.Context(), envelope(fmt.Sprintf("u%d@example.com", i))))
			time.Sleep(time.Millisecond)
		}
		quick := 0
		for _, done := range all {
			r := <-done
			if r.Err != nil || len(r.Receipt.Attempts) != 1 {
				t.Error(r.Receipt, r.Err)
			}
			if a := r.Receipt.Attempts[0]; a.Start.Add(a.Duration).Sub(begun) < 5*time.Second {
				quick++
			}
		}
		if quick != 3 {
			t.Errorf("%d were quick: a rider waited for the slow relay", quick)
		}
		for i := range 4 {
			if n := h.stored(fmt.Sprintf("u%d@example.com", i)); n != 1 {
				t.Errorf("u%d is stored %d times", i, n)
			}
		}
	})
}
