package smtplb

import (
	"testing"

	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
)

// A turn that was granted after an Update, to a send that went by the configuration before, opens a connection that nobody else may use.
func TestOutdatedConnectionIsNotKept(t *testing.T) {
	s := smtptest.NewServer()
	defer s.Close()
	p, err := New(Config{Relays: []Relay{{Addr: s.Addr}, {Addr: "other.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	old := *p.fleet.Load().relays[0]
	old.session = new(session.Config)
	*old.session = *old.current.Load()
	for _, outdated := range []bool{true, false} {
		r := &old
		if !outdated {
			r = p.fleet.Load().relays[0]
		}
		turn, ok := p.conns.Try(r.lane, false)
		if !ok {
			t.Fatal("no turn")
		}
		permit, _ := r.permit()
		l := &leg{pool: p, relay: r, turn: *turn, permit: permit}
		if l.conn, l.end, _ = session.Dial(t.Context(), r.session, l.begun, 0, nil); l.end != nil {
			t.Fatal(l.end)
		}
		l.settle()
		if learnt := r.offers.Load() != nil; learnt == outdated {
			t.Errorf("outdated %v, and its EHLO was learnt: %v", outdated, learnt)
		}
		if idle := p.conns.Stats(r.lane).Idle; idle > 0 == outdated {
			t.Errorf("outdated %v, %d connections are kept", outdated, idle)
		}
	}
}
