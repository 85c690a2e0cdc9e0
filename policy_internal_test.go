package smtplb

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// What a relay refuses is remembered for a while, and in bounded memory.
func TestApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a apart
		if a.has("example.com") {
			t.Error("it begins full")
		}
		a.add("example.com", time.Now())
		time.Sleep(apartFor)
		if !a.has("example.com") || a.has("example.org") {
			t.Error("it forgot, or remembers too much")
		}
		time.Sleep(1 * time.Second)
		if a.has("example.com") || len(a.until) != 0 || a.n.Load() != 0 {
			t.Errorf("it never forgets: %v", a.until)
		}
		for i := range 3 * maxApart {
			a.add(fmt.Sprintf("%d.example.com", i), time.Now())
			if len(a.until) > maxApart {
				t.Fatalf("%d domains are remembered", len(a.until))
			}
		}
		if last := fmt.Sprintf("%d.example.com", 3*maxApart-1); !a.has(last) || int(a.n.Load()) != len(a.until) {
			t.Error("the newest is not among them")
		}
	})
}
