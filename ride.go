package smtplb

import (
	"context"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
)

// This file lets a message that waits for a connection ride: its envelope goes out in one write behind the body of the message that is just being
// sent (RFC 2920 §3.1 allows it), and its sender gets that connection, with the replies on their way. That saves a round trip, and where many wait for few
// connections, as services allow them, half of all round trips.
//
// Who rides loses nothing by it. Its body has not begun, so nothing of it can have been accepted; where the connection breaks, or the message before is
// refused, it has its place in the queue back. It is no attempt before the connection is its own.

// maxRideRecipients is how many recipients a message that rides may have: its envelope is one group of commands.
const maxRideRecipients = 62

// rideWorth is how long a relay may take to answer a message for a ride to be worth it: the round trip that it saves is short against a longer time,
// in which another connection may become free.
const rideWorth = 500 * time.Millisecond

// rideTrial is how long one message at a time rides with a relay that hasn't answered an envelope behind a body yet: should it lose them, that costs no
// more than one message its time.
const rideTrial = 15 * time.Second

// lostRide is how long nobody rides with a relay that didn't answer an envelope behind a body.
const lostRide = time.Hour

// queue waits for d.turn, and for a ride where d may have one.
func (d *delivery) queue(ctx context.Context) error {
	d.place.Lanes, d.place.Rider, d.place.Fare = d.lanes, d.rides(), nil
	if d.fare != nil {
		d.place.Fare = d.fare
	}
	t, err := d.pool.conns.Wait(ctx, &d.place)
	if d.rider.Lent { // it left: somebody may still be writing its envelope
		d.tx, d.to = new(session.Transaction), nil
	}
	if err == nil {
		d.turn = *t
	}
	return err
}

// rides makes d.tx ready to ride, nil where d can't: it must be what the attempt will offer.
func (d *delivery) rides() *connpool.Rider {
	if d.env.RequireAll || d.pending > maxRideRecipients || d.again.Count() > 0 {
		return nil
	}
	d.to = d.to[:0]
	for i := range d.rcpts {
		if x := &d.rcpts[i]; x.outcome == 0 {
			d.to = append(d.to, x.addr)
		}
	}
	d.fillTransaction()
	d.rider.Load = d.tx
	return &d.rider
}

// Board and Alight make an attempt a session.Next: it takes along who waits first for its relay.
func (a *attempt) Board() *session.Transaction {
	r := a.relay
	if r.noRiding || r.outdated() || r.noRide.Load() || a.spent() || a.more() || r.noRideUntil.Load() > a.record.Start.UnixNano() {
		return nil
	}
	trial, now := r.rideTrial.Load(), int64(0)
	if trial != ridesWell {
		if now = time.Now().UnixNano(); trial > now || !r.rideTrial.CompareAndSwap(trial, now+int64(rideTrial)) {
			return nil
		}
	}
	load, ok := a.turn.Board(a.uses)
	if !ok {
		if now > 0 {
			r.rideTrial.CompareAndSwap(now+int64(rideTrial), trial)
		}
		return nil
	}
	return load.(*session.Transaction)
}

// ridesWell is relay.rideTrial once an envelope that rode was answered.
const ridesWell = -1

// Alight gives the one who boarded its place in the queue back.
func (a *attempt) Alight() { a.turn.Alight() }

// lostRide reports whether the relay said nothing to an envelope that rode: it may never have seen it.
func (a *attempt) lostRide() bool {
	return a.rides() && a.last.First && !a.last.Committed && a.last.Failure == reply.FailTimeout && !a.last.Shortened
}

// rides reports whether the transaction is one whose envelope rode: a redial sends it anew.
func (a *attempt) rides() bool { return a.record.Rode && !a.record.Redialed }

// learnRiding keeps what a transaction showed of riding: whether it is worth it, as it isn't with a relay that takes its time, or refuses messages (each
// then costs a connection), and whether the relay loses what follows a dot.
func (r *standing) learnRiding(res *session.Result, rode bool) {
	if res.End.Stage == reply.StageFinal {
		if not := res.Timings.Final > rideWorth || !res.End.Reply.Positive(); not != r.noRide.Load() {
			r.noRide.Store(not)
		}
	}
	switch {
	case !rode:
	case res.First && (res.End.Failure == reply.FailTimeout && !res.End.Shortened || res.End.LongWait): // callers in a hurry must not hide it
		r.rideTrial.Store(0)
		r.noRideUntil.Store(time.Now().Add(lostRide).UnixNano())
	case !res.First && r.rideTrial.Load() != ridesWell:
		r.rideTrial.Store(ridesWell)
	}
}
