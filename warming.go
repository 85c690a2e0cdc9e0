package smtplb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/warmup"
)

// warming is the warm-up of one relay with the Store that its state is kept in. What a send asks is schedule, which does no I/O; sync is for one of the pool's goroutines, as soon as schedule.Dirty says so, and now and then besides.
type warming struct {
	schedule *warmup.Schedule
	store    Store
	key      string
	relay    string
	busy     atomic.Bool // somebody is at sync

	slot chan struct{} // held by who talks to the store
	held []byte        // what it held then; guarded by slot
}

const (
	storeTimeout  = 10 * time.Second // for all that one sync asks of the Store
	storeConflict = 20               // so often another process may be quicker
)

func newWarming(relay string, w *Warmup, store Store) *warming {
	return &warming{
		schedule: warmup.New(w.config(strconv.FormatUint(rand.Uint64(), 36))),
		store:    store, relay: relay, key: "warmup/" + relay, slot: make(chan struct{}, 1),
	}
}

// sync brings schedule and Store together. Its error is why the relay can't go on soon; the schedule leaves the Store alone for a while then. It does nothing where another call is at it.
func (w *warming) sync(ctx context.Context) error {
	select {
	case w.slot <- struct{}{}:
	default:
		return nil
	}
	defer func() { <-w.slot }()
	return w.exchange(ctx)
}

// release gives back what of the day's cap was granted and not used. Nothing can be taken any more.
func (w *warming) release(ctx context.Context) error {
	w.schedule.Release(time.Now())
	select {
	case w.slot <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.slot }()
	return w.exchange(ctx)
}

var errStoreConflict = errors.New("others write to the store all the time")

func (w *warming) exchange(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	conflicts := 0
	for conflicts < storeConflict {
		if w.schedule.NeedsLoad(time.Now()) {
			if err := w.load(ctx); err != nil {
				return fmt.Errorf("the warm-up's state: %w", err)
			}
		}
		draft, ok := w.schedule.Draft(time.Now())
		if !ok {
			return nil
		}
		stored, err := w.swap(ctx, draft)
		if err != nil {
			return fmt.Errorf("the warm-up's state: %w", err)
		}
		if !stored {
			conflicts++
		}
	}
	w.schedule.Failed(time.Now(), warmup.Draft{})
	return fmt.Errorf("the warm-up's state: %w", errStoreConflict)
}

func (w *warming) load(ctx context.Context) (err error) {
	done := false
	defer func() {
		if err != nil || !done { // not done: the Store has panicked
			w.schedule.Failed(time.Now(), warmup.Draft{})
		}
	}()
	b, err := w.store.Load(ctx, w.key)
	if err != nil {
		return err
	}
	var r *warmup.Record
	if b != nil {
		if r, err = warmup.Decode(b); err != nil {
			return err
		}
	}
	w.held = b
	w.schedule.Adopt(r)
	done = true
	return nil
}

func (w *warming) swap(ctx context.Context, draft warmup.Draft) (stored bool, err error) {
	done := false
	defer func() {
		if err != nil || !done {
			w.schedule.Failed(time.Now(), draft)
		}
	}()
	b, err := draft.Record.Encode()
	if err != nil {
		return false, err
	}
	stored, err = w.store.Swap(ctx, w.key, w.held, b)
	if err != nil {
		return false, err
	}
	done = true
	if !stored {
		w.schedule.Refused(draft)
		return false, nil
	}
	w.held = b
	w.schedule.Stored(draft)
	return true, nil
}
