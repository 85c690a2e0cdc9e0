package smtplb

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBudgetAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b budget
		b.configure(0, 10)
		want := func(tokens float64) {
			t.Helper()
			if got := b.tokens(); got != tokens {
				t.Errorf("%v tokens, want %v", got, tokens)
			}
		}
		want(10)
		for range 100 {
			b.first()
		}
		want(30)
		for range 30 {
			if !b.spend() {
				t.Fatal("refused")
			}
		}
		if b.spend() {
			t.Error("spent more than there is")
		}
		for range 5 {
			b.first()
		}
		want(1)
		// What isn't spent lapses after a minute, down to the reserve.
		for range 1000 {
			b.first()
		}
		want(201)
		for range 13 {
			time.Sleep(5 * time.Second)
			b.turnOver(time.Now())
		}
		want(10)
		for i := range 5 { // all the time
			for range 100 {
				b.first()
			}
			time.Sleep(5 * time.Second)
			b.turnOver(time.Now())
			want(10 + 20*float64(i+1))
		}
		b.configure(0.1, 40)
		want(140)
		b.configure(0.1, 5)
		want(105)
		b.configure(-1, 5)
		for range 200 {
			if !b.spend() {
				t.Fatal("refused without a budget")
			}
		}
		b.configure(0.1, 5)
		want(105)
	})
}

func TestHedgeAccount(t *testing.T) {
	var h hedges
	took := 0
	for range 10_000 {
		h.dialled()
		if h.take() {
			took++
		}
	}
	if took != 10_000*hedgeShare/100+hedgeBurst-1 && took != 10_000*hedgeShare/100+hedgeBurst {
		t.Errorf("%d extra dials", took)
	}
	for range 10_000 {
		h.dialled()
	}
	took = 0
	for h.take() {
		took++
	}
	if took != hedgeBurst {
		t.Errorf("%d at once", took)
	}
}

func TestPatience(t *testing.T) {
	var c connects
	if got := c.patience(); got != hedgeAfter {
		t.Error(got)
	}
	for range 61 {
		c.add(400 * time.Millisecond)
	}
	for range 3 {
		c.add(9 * time.Second)
	}
	if got := c.patience(); got != 400*time.Millisecond {
		t.Error(got)
	}
	c.add(9 * time.Second)
	if got := c.patience(); got != 9*time.Second {
		t.Error(got)
	}
	for range 64 {
		c.add(0)
	}
	if got := c.patience(); got != hedgeAfter {
		t.Error(got)
	}
}

// A fleet that shrinks and grows again, as DNS may have it, earns nothing by that.
func TestBudgetOfAFleetThatFlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b budget
		b.configure(0, 30)
		for b.spend() {
		}
		for range 5 {
			b.configure(0, 10)
			if n := b.tokens(); n != 0 || b.spend() {
				t.Errorf("%v tokens in the small fleet", n)
			}
			b.configure(0, 30)
			if n := b.tokens(); n != 0 || b.spend() {
				t.Errorf("%v tokens after it has grown again", n)
			}
		}
		for range 50 {
			b.first()
		}
		if n := b.tokens(); n != 10 {
			t.Errorf("%v tokens of 50 first attempts", n)
		}
	})
}
