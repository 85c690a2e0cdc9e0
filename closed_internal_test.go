package smtplb

import (
	"context"
	"errors"
	"testing"
)

// watched is a context that knows how many are told of its end.
type watched struct {
	context.Context
	done chan struct{}
	n    int
}

func (w *watched) Done() <-chan struct{} { return w.done }
func (w *watched) AfterFunc(func()) (stop func() bool) {
	w.n++
	return func() bool { w.n--; return true }
}

// What ends with the pool has the pool's reason; once it isn't needed any more neither pool nor caller know of it.
func TestUntilClosedLeavesNothing(t *testing.T) {
	p, err := New(plainConfig())
	if err != nil {
		t.Fatal(err)
	}
	open, end := p.untilClosed(t.Context())
	other, endOther := p.untilClosed(t.Context())
	endOther()
	if open.Err() != nil || other.Err() == nil {
		t.Errorf("%v, %v", open.Err(), other.Err())
	}
	p.Close()
	<-open.Done()
	end()
	if cause := context.Cause(open); !errors.Is(cause, ErrClosed) {
		t.Error(cause)
	}
	pool, caller := &watched{context.Background(), make(chan struct{}), 0}, &watched{context.Background(), make(chan struct{}), 0}
	p = &Pool{ctx: pool}
	_, end = p.untilClosed(caller)
	if pool.n != 1 || caller.n != 1 {
		t.Errorf("%d of the pool's, %d of the caller's", pool.n, caller.n)
	}
	end()
	if pool.n != 0 || caller.n != 0 {
		t.Errorf("%d of the pool's and %d of the caller's are left", pool.n, caller.n)
	}
}

// By itself DeliverAll has four times as many in flight as there may be connections, 40 for a relay without a bound, and never none.
func TestBulkLimitByConnections(t *testing.T) {
	for _, x := range []struct {
		relays []Relay
		want   int
	}{
		{[]Relay{{Addr: "a.test:25", TLS: TLSNone, Conns: Conns{Max: 3}}}, 12},
		{[]Relay{{Addr: "a.test:25", TLS: TLSNone, Conns: Conns{Max: 3}}, {Addr: "b.test:25", TLS: TLSNone, Conns: Conns{Max: -1}}}, 52},
		{[]Relay{{Addr: "srv:example.com"}}, 4}, // not asked yet
	} {
		p, err := New(Config{Relays: x.relays, Health: Health{Interval: -1}})
		if err != nil {
			t.Fatal(err)
		}
		if n := p.bulkLimit(0); n != x.want {
			t.Errorf("%d in flight, want %d", n, x.want)
		}
		p.Close()
	}
}
