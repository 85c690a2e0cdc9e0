package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// identity names a client and the way it is used.
type identity struct{ client, mode string }

func (id identity) String() string { return id.client + ":" + id.mode }

// A client sends a work's letter.
type client interface {
	// turn sends for as long as q says so. Every message that it counts was accepted.
	turn(ctx context.Context, q *quota) (turn, error)
	close()
}

// setup is what a client is made from.
type setup struct {
	work   *work
	to     *target
	letter *letter
}

// An entry is a client that can be made.
type entry struct {
	identity
	fits func(*work) bool // nil: it can do all of them
	open func(*setup) (client, error)
}

// absentError says why a client can't take part here: it is left out, and the run goes on.
type absentError struct{ reason string }

func (e *absentError) Error() string { return e.reason }

// base is what the others are compared with.
var base = identity{"net/smtp", "reused"}

func plain(w *work) bool { return !w.attach }

// entries are all clients, in the order of the report.
var entries = []entry{
	{base, nil, openNetSMTP},
	{identity{"net/smtp", "dial"}, plain, openNetSMTPDial},
	{identity{"go-mail", "dial"}, nil, openGoMailDial},
	{identity{"go-mail", "kept"}, nil, openGoMailKept},
	{identity{"go-mail", "kept-bare"}, nil, openGoMailBare},
	{identity{"email", "pool"}, plain, openEmail},
	{identity{"smtppool", "pool"}, plain, openSMTPPool},
	{identity{"go-smtp", "kept"}, plain, openGoSMTP},
	{identity{"nodemailer", "pool"}, plain, openNodemailer},
	{identity{"smtplb", "b"}, nil, openSmtplbB},
	{identity{"smtplb", "c"}, plain, openSmtplbC},
	{identity{"smtplb", "DeliverAll"}, plain, openSmtplbAll},
	{identity{"smtplb", "d"}, func(w *work) bool { return plain(w) && w.conns == 1 && w.rtt == 0 }, openSmtplbD},
	{identity{"bound-b", "b"}, plain, openBoundB},
	{identity{"bound-c", "c"}, func(w *work) bool { return plain(w) && !w.noPipelining }, openBoundC},
	{identity{"bound-c-contract", "c"}, func(w *work) bool { return plain(w) && !w.noPipelining }, openBoundContract},
}

// choose returns the entries that the comma-separated list names by client, or by client:mode, in their order, the base first.
func choose(list string) ([]entry, error) {
	if list == "" {
		return entries, nil
	}
	names := strings.Split(list, ",")
	var chosen []entry
	used := map[string]bool{}
	for _, e := range entries {
		wanted := e.identity == base
		for _, n := range names {
			if n == e.client || n == e.String() {
				wanted, used[n] = true, true
			}
		}
		if wanted {
			chosen = append(chosen, e)
		}
	}
	for _, n := range names {
		if !used[n] {
			return nil, fmt.Errorf("no client %q; there are %s", n, known(entries))
		}
	}
	return chosen, nil
}

func known(all []entry) string {
	var names []string
	for _, e := range all {
		names = append(names, e.String())
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// A quota says how long to send: a time, or, where count is set, a number of messages.
type quota struct {
	length time.Duration // from start
	count  int           // 0: length decides

	until  time.Time
	taken  atomic.Int64
	failed atomic.Bool
}

// start is called when everything else is ready.
func (q *quota) start() { q.until = time.Now().Add(q.length) }

// more takes one message out of it, if there is one. There is one at least, however late it is.
func (q *quota) more() bool {
	switch {
	case q.failed.Load(): // somebody's send failed: the turn is void
		return false
	case q.count > 0:
		return q.taken.Add(1) <= int64(q.count)
	default:
		return time.Now().Before(q.until) || q.taken.CompareAndSwap(0, 1)
	}
}

// tallyOf is what one goroutine of a client did.
type tallyOf struct {
	sent  int
	times []time.Duration
	err   error
}

// A crowd is a client whose sends are calls in this process.
type crowd struct {
	workers int
	send    func(ctx context.Context, worker int) error
	done    func()
}

func (c *crowd) close() { c.done() }

func (c *crowd) turn(ctx context.Context, q *quota) (turn, error) {
	return measure(c.workers, q, true, func(i int, mine *tallyOf) {
		for q.more() {
			begun := time.Now()
			if mine.err = c.send(ctx, i); mine.err != nil {
				return
			}
			mine.times = append(mine.times, time.Since(begun))
			mine.sent++
		}
	})
}

// measure runs f in so many goroutines, and adds up what they did and what that cost this process.
func measure(workers int, q *quota, timed bool, f func(i int, mine *tallyOf)) (turn, error) {
	all := make([]tallyOf, workers)
	if timed {
		for i := range all {
			all[i].times = make([]time.Duration, 0, 1<<12) // so that what it costs to note them isn't counted
		}
	}
	runtime.GC() // what others left behind isn't this one's to clean up
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	q.start()
	cpu, begun := cpuTime(), time.Now()
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			f(i, &all[i])
			if all[i].err != nil {
				q.failed.Store(true)
			}
		})
	}
	wg.Wait()
	t := turn{elapsed: time.Since(begun), cpu: cpuTime() - cpu, p50: -1, p99: -1}
	runtime.ReadMemStats(&after)
	var times []time.Duration
	var errs []error
	for _, a := range all {
		t.sent += a.sent
		times = append(times, a.times...)
		errs = append(errs, a.err)
	}
	if timed {
		t.p50, t.p99 = latencies(times)
	}
	if n := float64(t.sent); n > 0 {
		t.allocs = float64(after.Mallocs-before.Mallocs) / n
		t.bytes = float64(after.TotalAlloc-before.TotalAlloc) / n
	}
	return t, errors.Join(errs...)
}

// kept are connections for workers: one each where there are enough, else handed from one to the next.
type kept[T any] struct {
	all  []T
	free chan T // nil: each worker has its own
}

func keep[T any](w *work, open func() (T, error)) (*kept[T], error) {
	k := &kept[T]{}
	for range w.conns {
		c, err := open()
		if err != nil {
			return k, err
		}
		k.all = append(k.all, c)
	}
	if w.conns < w.workers {
		k.free = make(chan T, w.conns)
		for _, c := range k.all {
			k.free <- c
		}
	}
	return k, nil
}

func (k *kept[T]) with(worker int, f func(T) error) error {
	if k.free == nil {
		return f(k.all[worker])
	}
	c := <-k.free
	defer func() { k.free <- c }()
	return f(c)
}

// keptClient makes a client of connections that are kept.
func keptClient[T any](s *setup, open func() (T, error), shut func(T), send func(T) error) (client, error) {
	k, err := keep(s.work, open)
	done := func() {
		for _, c := range k.all {
			shut(c)
		}
	}
	if err != nil {
		done()
		return nil, err
	}
	return &crowd{
		workers: s.work.workers,
		send:    func(_ context.Context, i int) error { return k.with(i, send) },
		done:    done,
	}, nil
}
