package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// options are of a whole run.
type options struct {
	rounds int
	count  int // messages of a turn; 0: the work's time decides
	log    io.Writer
}

// A racer is a client that takes part in a work.
type racer struct {
	identity
	client
	turns []turn
}

// run lets the clients do the work, in rounds in which each has a turn, in an order that is drawn anew. An error means that the figures of a client, or all of
// them, are void; what is left is returned beside it.
func (w *work) run(ctx context.Context, clients []entry, o options) ([]result, error) {
	to, err := w.start()
	if absent := new(absentError); errors.As(err, &absent) {
		fmt.Fprintf(o.log, "%s: left out: %v\n", w.name, err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	defer to.stop()
	racers, errs := w.line(clients, to, o)
	defer func() {
		for _, r := range racers {
			r.close()
		}
	}()
	rounds := w.rounds(o.rounds)
	for round := range rounds + 1 {
		order := rand.Perm(len(racers))
		var lame []int
		for _, i := range order {
			r := racers[i]
			q := &quota{length: w.turn, count: o.count}
			if round == 0 { // connections, buffers and compilers get warm
				q.length /= 3
			}
			t, err := w.turnOf(ctx, r, q, to)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s, %s: %w", w.name, r.identity, err))
				lame = append(lame, i)
				continue
			}
			if round > 0 {
				r.turns = append(r.turns, t)
			}
		}
		racers = without(racers, lame)
		if len(racers) == 0 || racers[0].identity != base {
			return nil, errors.Join(append(errs, fmt.Errorf("%s: without %s there is nothing to compare with", w.name, base))...)
		}
	}
	var all []result
	for _, r := range racers {
		all = append(all, summarise(w, r.identity, r.turns, racers[0].turns))
	}
	return all, errors.Join(errs...)
}

func (w *work) start() (*target, error) {
	if w.smtpSink {
		return startSMTPSink()
	}
	return startServer(serverOptions{Sink: sinkOptions{TLS: w.tls, NoPipelining: w.noPipelining}, RTT: w.rtt})
}

// line opens the clients that can do the work.
func (w *work) line(clients []entry, to *target, o options) (racers []*racer, errs []error) {
	s := &setup{w, to, w.letter()}
	for _, e := range clients {
		if e.fits != nil && !e.fits(w) {
			continue
		}
		c, err := e.open(s)
		if absent := new(absentError); errors.As(err, &absent) {
			fmt.Fprintf(o.log, "%s: %s left out: %v\n", w.name, e.identity, err)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s, %s: %w", w.name, e.identity, err))
			continue
		}
		racers = append(racers, &racer{identity: e.identity, client: c})
	}
	return racers, errs
}

// turnOf gives a client its turn, and holds what it says against what the sink counted.
func (w *work) turnOf(ctx context.Context, r *racer, q *quota, to *target) (turn, error) {
	var before tally
	var err error
	if to.count != nil {
		if before, err = to.count(); err != nil {
			return turn{}, err
		}
	}
	t, err := r.turn(ctx, q)
	if err != nil {
		return t, err
	}
	if t.sent == 0 || t.elapsed <= 0 {
		return t, errors.New("nothing was sent")
	}
	return t, verify(to, before, t.sent, w.rcpts)
}

// verify holds the number of messages that a client says it sent against the sink's.
func verify(to *target, before tally, sent, rcpts int) error {
	if to.count == nil {
		return nil
	}
	after, err := to.count()
	if err != nil {
		return err
	}
	if n := after.Messages - before.Messages; n != int64(sent) {
		return fmt.Errorf("the client says that it sent %d messages, the sink has %d", sent, n)
	}
	if n := after.Recipients - before.Recipients; n != int64(sent)*int64(rcpts) {
		return fmt.Errorf("%d messages to %d recipients each were sent, the sink has %d recipients", sent, rcpts, n)
	}
	return nil
}

// without returns the racers but those of the given numbers, and closes these.
func without(racers []*racer, numbers []int) []*racer {
	gone := map[int]bool{}
	for _, i := range numbers {
		gone[i] = true
	}
	var rest []*racer
	for i, r := range racers {
		if gone[i] {
			r.close()
			continue
		}
		rest = append(rest, r)
	}
	return rest
}
