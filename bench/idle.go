package main

import (
	"context"
	"fmt"
	"net"
	"net/smtp"
	"runtime"
	"sync"

	"github.com/smtplb/smtplb"
)

// idleConns is how many connections idle-memory divides by.
const idleConns = 200

// idleMemory measures the heap that an idle connection holds, plain and with TLS. Each has sent a message.
func idleMemory(conns int) ([]result, error) {
	var all []result
	for _, mode := range []string{"plain", "tls"} {
		w := &work{name: idleWork, size: 2 * kB, rcpts: 1, workers: conns, conns: conns, tls: mode == "tls"}
		to, err := startServer(serverOptions{Sink: sinkOptions{TLS: w.tls}})
		if err != nil {
			return all, err
		}
		s := &setup{w, to, w.letter()}
		for _, c := range []struct {
			name string
			idle func(*setup) (float64, error)
		}{{base.client, idleNetSMTP}, {"smtplb", idleSmtplb}} {
			before, err := to.count()
			if err != nil {
				break
			}
			bytes, err := c.idle(s)
			if err == nil {
				err = verify(to, before, conns, 1)
			}
			if err != nil {
				to.stop()
				return all, fmt.Errorf("%s, %s, %s: %w", idleWork, c.name, mode, err)
			}
			all = append(all, result{Work: idleWork, Client: c.name, Mode: mode, Heap: &bytes, Rounds: 1})
		}
		to.stop()
	}
	return all, nil
}

func idleNetSMTP(s *setup) (float64, error) {
	before := heap()
	k, err := keep(s.work, func() (*smtp.Client, error) { return dialNetSMTP(s) })
	defer func() {
		for _, c := range k.all {
			c.Close()
		}
	}()
	for _, c := range k.all {
		if err == nil {
			err = transact(c, s.letter)
		}
	}
	return (heap() - before) / float64(s.work.conns), err
}

func idleSmtplb(s *setup) (float64, error) {
	var dialled sync.WaitGroup // all connections must be in use at once
	dialled.Add(s.work.conns)
	p, err := newPool(s, func(r *smtplb.Relay) {
		r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialled.Done()
			dialled.Wait()
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	goroutines(s.work.conns)
	before := heap()
	var wg sync.WaitGroup
	errs := make(chan error, s.work.conns)
	for range s.work.conns {
		wg.Go(func() {
			if _, err := p.Deliver(ctx, s.letter.envelope()); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	if idle := p.Stats().Relays[0].Idle; idle != s.work.conns {
		return 0, fmt.Errorf("%d connections are idle, not %d", idle, s.work.conns)
	}
	return (heap() - before) / float64(s.work.conns), nil
}

// goroutines lets so many goroutines be at once: what the runtime keeps of one that ended isn't the connection's.
func goroutines(n int) {
	var all, here sync.WaitGroup
	here.Add(n)
	for range n {
		all.Go(func() {
			here.Done()
			here.Wait()
		})
	}
	all.Wait()
}

// heap is what is in use after everything that can be freed was.
func heap() float64 {
	var m runtime.MemStats
	for range 3 { // what a sync.Pool holds goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
