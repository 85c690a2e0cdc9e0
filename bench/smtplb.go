package main

import (
	"context"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/wneessen/go-mail"
)

// sendTimeout is the deadline that smtplb's sends have, as an application's would.
const sendTimeout = 2 * time.Minute

// newPool makes a Pool of one relay, with connections that are kept for as long as the peers keep theirs.
func newPool(s *setup, change func(*smtplb.Relay)) (*smtplb.Pool, error) {
	r := smtplb.Relay{
		Addr:  s.to.addr,
		TLS:   smtplb.TLSNone,
		Conns: smtplb.Conns{Max: s.work.conns, MaxMessages: -1, MaxAge: -1, MaxIdleTime: -1},
	}
	if s.to.tls != nil {
		r.TLS, r.TLSConfig = smtplb.TLSStartTLS, s.to.tls
	}
	if change != nil {
		change(&r)
	}
	return smtplb.New(smtplb.Config{LocalName: "localhost", Relays: []smtplb.Relay{r}})
}

func (l *letter) envelope() *smtplb.Envelope {
	return &smtplb.Envelope{From: l.from, To: l.to, Body: smtplb.Bytes(l.raw)}
}

// deliverers is a client whose workers call Deliver.
func deliverers(s *setup, p *smtplb.Pool, workers int) client {
	e := s.letter.envelope()
	send := func(ctx context.Context) error {
		_, err := p.Deliver(ctx, e)
		return err
	}
	if s.work.attach {
		send = func(ctx context.Context) error {
			m, err := goMailMessage(s.letter)
			if err != nil {
				return err
			}
			return sendMessage(ctx, p, m)
		}
	}
	return &smtplbCrowd{crowd{
		workers: workers,
		send:    func(ctx context.Context, _ int) error { return send(ctx) },
		done:    func() { p.Close() },
	}}
}

func sendMessage(ctx context.Context, p *smtplb.Pool, m *mail.Msg) error {
	_, err := p.Send(ctx, m)
	return err
}

// smtplbCrowd gives a turn's sends a deadline.
type smtplbCrowd struct{ crowd }

func (c *smtplbCrowd) turn(ctx context.Context, q *quota) (turn, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return c.crowd.turn(ctx, q)
}

// openSmtplbB: no message's envelope goes out behind another's body.
func openSmtplbB(s *setup) (client, error) {
	p, err := newPool(s, func(r *smtplb.Relay) { r.NoRiding = true })
	if err != nil {
		return nil, err
	}
	return deliverers(s, p, s.work.workers), nil
}

// crowding is how many callers a connection has where there are to be more callers than connections.
const crowding = 4

func callers(w *work) int { return max(w.workers, crowding*w.conns) }

// openSmtplbC: callers that wait for a connection ride behind the message that is under way on it.
func openSmtplbC(s *setup) (client, error) {
	p, err := newPool(s, nil)
	if err != nil {
		return nil, err
	}
	return deliverers(s, p, callers(s.work)), nil
}

// openSmtplbD: the message goes by BDAT.
func openSmtplbD(s *setup) (client, error) {
	p, err := newPool(s, func(r *smtplb.Relay) { r.Chunking = true })
	if err != nil {
		return nil, err
	}
	return deliverers(s, p, s.work.workers), nil
}

// smtplbBulk is DeliverAll.
type smtplbBulk struct {
	pool     *smtplb.Pool
	envelope *smtplb.Envelope
}

func openSmtplbAll(s *setup) (client, error) {
	p, err := newPool(s, nil)
	if err != nil {
		return nil, err
	}
	return &smtplbBulk{p, s.letter.envelope()}, nil
}

func (b *smtplbBulk) close() { b.pool.Close() }

func (b *smtplbBulk) turn(ctx context.Context, q *quota) (turn, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return measure(1, q, false, func(_ int, mine *tallyOf) {
		all := func(yield func(*smtplb.Envelope) bool) {
			for q.more() && yield(b.envelope) {
			}
		}
		for r := range b.pool.DeliverAll(ctx, all, smtplb.Bulk{}) {
			if r.Err != nil {
				mine.err = r.Err
				q.failed.Store(true) // no more is taken; what is in flight comes out
				continue
			}
			mine.sent++
		}
	})
}
