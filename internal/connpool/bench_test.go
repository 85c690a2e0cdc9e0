package connpool_test

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

type benchConn struct{ dead bool }

func benchPool(max int) *connpool.Pool[*benchConn] {
	p := connpool.New(connpool.Config[*benchConn]{
		Alive: func(c *benchConn) bool { return !c.dead },
		Close: func(*benchConn, connpool.Reason) {},
	})
	p.AddLane(connpool.Limits{Max: max, MaxAge: 1 << 40, MaxIdleTime: 1 << 40}, connpool.Up)
	return p
}

// useOnce does what a message does to a lane: it reuses the idle connection.
func useOnce(tb testing.TB, p *connpool.Pool[*benchConn]) {
	t, ok := p.Try(0, false)
	if !ok {
		tb.Fatal("no turn")
	}
	if _, ok := t.Conn(); !ok {
		t.Adopt(&benchConn{})
	}
	t.Put(1)
}

func BenchmarkTryConnPut(b *testing.B) {
	p := benchPool(10)
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		useOnce(b, p)
	}
}

func BenchmarkTryConnPutParallel(b *testing.B) {
	p := benchPool(0)
	defer p.Close()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			useOnce(b, p)
		}
	})
}

// The turn is passed on through an interface, so that it escapes.
func BenchmarkTryConnPutEscaping(b *testing.B) {
	p := benchPool(10)
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		t, _ := p.Try(0, false)
		sink = t
		if _, ok := t.Conn(); !ok {
			t.Adopt(&benchConn{})
		}
		t.Put(1)
	}
}

var sink any

func BenchmarkTryFull(b *testing.B) {
	p := benchPool(1)
	defer p.Close()
	t, _ := p.Try(0, false)
	defer t.Drop()
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := p.Try(0, false); ok {
			b.Fatal("a turn too many")
		}
	}
}

// Two goroutines hand one slot to each other through the queue.
func BenchmarkWaitHandOff(b *testing.B) {
	p := benchPool(1)
	defer p.Close()
	lanes := []uint64{1}
	b.ReportAllocs()
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			t, err := p.Wait(context.Background(), &connpool.Request{Lanes: lanes})
			if err != nil {
				b.Error(err)
				return
			}
			t.Put(1)
		}
	})
}

// A slot of lane 1 is handed on while many wait for lane 0 in front.
func BenchmarkWaitBehind10000(b *testing.B) {
	p := benchPool(1)
	p.AddLane(connpool.Limits{Max: 1}, connpool.Up)
	busy, _ := p.Try(0, false)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	const n = 10000
	for range n {
		go func() {
			if t, err := p.Wait(ctx, &connpool.Request{Lanes: []uint64{1}}); err == nil {
				t.Put(0)
			}
			done <- struct{}{}
		}()
	}
	for p.Waiting() < n {
	}
	lanes := []uint64{2}
	b.ReportAllocs()
	b.SetParallelism(4)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			t, err := p.Wait(context.Background(), &connpool.Request{Lanes: lanes})
			if err != nil {
				b.Error(err)
				return
			}
			t.Put(1)
		}
	})
	b.StopTimer()
	cancel()
	for range n {
		<-done
	}
	busy.Drop()
	p.Close()
}

// 100,000 wait for two lanes, are told to look again, and come back in whatever
// order; the figure is for one of them.
func BenchmarkRouse100000(b *testing.B) {
	const n = 100_000
	p := benchPool(1)
	p.AddLane(connpool.Limits{Max: 1}, connpool.Up)
	x, _ := p.Try(0, false)
	y, _ := p.Try(1, false)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := &connpool.Request{Lanes: []uint64{3}, Lag: time.Duration(i%3) * time.Hour, Bulk: i%3 > 0}
			for {
				if _, err := p.Wait(ctx, r); err != connpool.ErrChanged {
					return
				}
			}
		})
	}
	all := func() {
		for p.Waiting() < n {
			runtime.Gosched()
		}
	}
	all()
	for b.Loop() {
		p.Rouse()
		all()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/waiter")
	b.StopTimer()
	cancel()
	wg.Wait()
	x.Drop()
	y.Drop()
	p.Close()
}

// The fast path allocates nothing: not a turn, not a timer, not a list.
func TestFastPathDoesNotAllocate(t *testing.T) {
	p := benchPool(4)
	defer p.Close()
	useOnce(t, p)
	want := 0.0
	if testing.CoverMode() != "" {
		want = 1 // the counters of coverage keep Try from being inlined, and so the turn from the stack
	}
	if got := testing.AllocsPerRun(1000, func() { useOnce(t, p) }); got > want {
		t.Errorf("%v allocations per Try, Conn and Put, want %v", got, want)
	}
}

// token is the cheapest fare there is.
type token struct{ paid int }

func (f *token) Like(connpool.Fare) bool                { return true }
func (f *token) Wait(connpool.Ask) time.Duration        { return 0 }
func (f *token) Pay(int, time.Time, bool)               { f.paid++ }
func (f *token) End(_ int, _ time.Time, _, _ bool) bool { f.paid--; return false }
func (f *token) Leave(connpool.Place) bool              { return false }

// BenchmarkTryConnPut with a fare.
func BenchmarkTryFareConnPut(b *testing.B) {
	p := benchPool(10)
	defer p.Close()
	f := &token{}
	b.ReportAllocs()
	for b.Loop() {
		t, ok := p.TryFare(0, false, f, 0)
		if !ok {
			b.Fatal("no turn")
		}
		if _, ok := t.Conn(); !ok {
			t.Adopt(&benchConn{})
		}
		t.Put(1)
	}
}

// BenchmarkWaitHandOff with a fare.
func BenchmarkWaitFareHandOff(b *testing.B) {
	p := benchPool(1)
	defer p.Close()
	lanes := []uint64{1}
	f := &token{}
	b.ReportAllocs()
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			t, err := p.Wait(context.Background(), &connpool.Request{Lanes: lanes, Fare: f})
			if err != nil {
				b.Error(err)
				return
			}
			t.Put(1)
		}
	})
}

// apart is a fare that is for something of its own, which lets nobody pass, and for what is shared.
type apart struct {
	open *bool
	mine bool
}

func (f *apart) Like(other connpool.Fare) bool { return f == other.(*apart) }
func (f *apart) Wait(connpool.Ask) time.Duration {
	if f.mine && *f.open {
		return 0
	}
	return time.Hour
}
func (f *apart) Pay(int, time.Time, bool)               { *f.open = false }
func (f *apart) End(_ int, _ time.Time, _, _ bool) bool { return false }
func (f *apart) Leave(connpool.Place) bool              { return false }

// Many wait who each pay for something of their own, and one after the other comes that could: what a
// token costs while so many wait for others.
func BenchmarkWaitBeside1000Lines(b *testing.B) {
	p := benchPool(0)
	open := false
	ctx, cancel := context.WithCancel(context.Background())
	const n = 1000
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			p.Wait(ctx, &connpool.Request{Lanes: []uint64{1}, Fare: &apart{open: &open}})
		})
	}
	for p.Waiting() < n {
		runtime.Gosched()
	}
	f := &apart{open: &open, mine: true}
	b.ReportAllocs()
	for b.Loop() {
		open = true
		t, ok := p.TryFare(0, false, f, 0)
		if !ok {
			b.Fatal("no turn")
		}
		t.Put(1)
	}
	cancel()
	wg.Wait()
	p.Close()
}
