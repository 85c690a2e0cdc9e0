package main

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"
)

// This file is bound-c with what a client owes its callers, and nothing else: a caller of its own for each message, who waits for a connection in one queue and is handed it with
// the replies to its envelope on their way; the end of the caller's context, which must end the conversation; a deadline for each stage; and books of what became
// of it. What is prepared, sent and looked at is bound-c's. No client that keeps these promises, and has a goroutine for each caller, can be faster.

// A contract is such a client.
type contract struct {
	letter *prepared

	mu       sync.Mutex // guards the following fields
	free     []*contractConn
	queue    []*seat
	accepted int // the books
}

type contractConn struct {
	*boundConn
	came   int    // replies that were read, and not asked for yet
	within bool   // the last of what was read is no whole line
	cut    func() // what the end of a caller's context does
}

// A seat is a caller who waits.
type seat struct {
	wake chan struct{}
	conn *contractConn
	rode bool
}

var seats = sync.Pool{New: func() any { return &seat{wake: make(chan struct{}, 1)} }}

func openBoundContract(s *setup) (client, error) {
	k := &contract{letter: prepare(s.letter)}
	done := func() {
		for _, c := range k.free {
			_ = c.exchange([]byte("QUIT\r\n"), 1)
			c.Close()
		}
	}
	for range s.work.conns {
		b, err := dialBound(s)
		if err != nil {
			done()
			return nil, err
		}
		c := &contractConn{boundConn: b}
		c.cut = func() { _ = c.SetDeadline(time.Unix(1, 0)) }
		k.free = append(k.free, c)
	}
	return &smtplbCrowd{crowd{
		workers: callers(s.work),
		send:    func(ctx context.Context, _ int) error { return k.send(ctx) },
		done:    done,
	}}, nil
}

func (k *contract) send(ctx context.Context) error {
	c, rode, err := k.take(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, c.cut)
	next, err := k.converse(c, rode)
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	if err == nil {
		k.give(c, next)
	}
	return err
}

// converse sends the message, and with it the envelope of the one who waits first.
func (k *contract) converse(c *contractConn, rode bool) (next *seat, err error) {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if !rode {
		if _, err := c.Write(k.letter.envelope); err != nil {
			return nil, err
		}
	}
	if err := c.wait(len(k.letter.commands)); err != nil {
		return nil, err
	}
	k.mu.Lock()
	if len(k.queue) > 0 {
		next = k.queue[0]
		k.queue = append(k.queue[:0], k.queue[1:]...)
	}
	k.mu.Unlock()
	out := k.letter.body
	if next != nil {
		out = k.letter.both
	}
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return next, err
	}
	if _, err := c.Write(out); err != nil {
		return next, err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil {
		return next, err
	}
	return next, c.wait(1)
}

// take waits for a connection. Of a caller who leaves the queue the seat is lost: that ends the turn, and with it the client.
func (k *contract) take(ctx context.Context) (*contractConn, bool, error) {
	k.mu.Lock()
	if n := len(k.free); n > 0 {
		c := k.free[n-1]
		k.free = k.free[:n-1]
		k.mu.Unlock()
		return c, false, nil
	}
	s := seats.Get().(*seat)
	k.queue = append(k.queue, s)
	k.mu.Unlock()
	select {
	case <-s.wake:
		c, rode := s.conn, s.rode
		s.conn = nil
		seats.Put(s)
		return c, rode, nil
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// give hands the connection to the one whose envelope was sent, or else to who waits, or to nobody.
func (k *contract) give(c *contractConn, next *seat) {
	rode := next != nil
	k.mu.Lock()
	k.accepted++
	if next == nil && len(k.queue) > 0 {
		next = k.queue[0]
		k.queue = append(k.queue[:0], k.queue[1:]...)
	}
	if next == nil {
		k.free = append(k.free, c)
	}
	k.mu.Unlock()
	if next != nil {
		next.conn, next.rode = c, rode
		next.wake <- struct{}{}
	}
}

// wait waits for n replies of one line each. What comes with them is for the next.
func (c *contractConn) wait(n int) error {
	for c.came < n {
		k, err := c.Read(c.in)
		if err != nil {
			return err
		}
		if b := c.in[0]; !c.within && b != '2' && b != '3' {
			return errRefused
		}
		c.within = c.in[k-1] != '\n'
		c.came += bytes.Count(c.in[:k], []byte("\n"))
	}
	c.came -= n
	return nil
}
