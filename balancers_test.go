package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// accepted is how many messages each relay has.
func (h *house) accepted() []int {
	n := make([]int, len(h.relays))
	for i, r := range h.relays {
		n[i] = len(r.Messages())
	}
	return n
}

func TestBalancerNames(t *testing.T) {
	var got []string
	for _, b := range []smtplb.Balancer{
		smtplb.Adaptive(), smtplb.RoundRobin(), smtplb.LeastInFlight(), smtplb.Latency(), smtplb.Random(), smtplb.FirstAvailable(),
		smtplb.Hash(smtplb.HashOptions{}), smtplb.Hash(smtplb.HashOptions{By: smtplb.HashSender}), smtplb.Hash(smtplb.HashOptions{By: smtplb.HashSenderDomain}),
		smtplb.Hash(smtplb.HashOptions{By: smtplb.HashRecipientDomain}), smtplb.Hash(smtplb.HashOptions{By: 9}),
	} {
		got = append(got, fmt.Sprint(b))
	}
	want := []string{"Adaptive", "RoundRobin", "LeastInFlight", "Latency", "Random", "FirstAvailable", "Hash by key", "Hash by sender", "Hash by sender domain", "Hash by recipient domain", "Hash by HashBy(9)"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestHashOptions(t *testing.T) {
	for _, test := range []struct {
		o      smtplb.HashOptions
		reason string // "" if it is in order
	}{
		{smtplb.HashOptions{}, ""},
		{smtplb.HashOptions{By: smtplb.HashRecipientDomain, Load: 1.25}, ""},
		{smtplb.HashOptions{Load: 2}, ""},
		{smtplb.HashOptions{By: 4}, "By 4"},
		{smtplb.HashOptions{Load: 1.2}, "Load 1.2;"},
		{smtplb.HashOptions{Load: 2.1}, "Load 2.1;"},
		{smtplb.HashOptions{Load: -1}, "Load -1;"},
	} {
		p, err := smtplb.New(smtplb.Config{Balancer: smtplb.Hash(test.o), Relays: []smtplb.Relay{{Addr: "r.example.com:587"}}})
		if test.reason == "" {
			if err != nil {
				t.Errorf("%+v: %v", test.o, err)
				continue
			}
			p.Close()
			continue
		}
		var ce *smtplb.ConfigError
		if !errors.As(err, &ce) || ce.Path != "Balancer" || !strings.Contains(ce.Reason, test.reason) {
			t.Errorf("%+v: %v", test.o, err)
		}
	}
}

// What of an envelope decides, and what when that is empty.
func TestHashBy(t *testing.T) {
	const key, from, domain = "tenant", "a@sender.example", "rcpt.example"
	null := ""
	for _, test := range []struct {
		by         smtplb.HashBy
		info, like smtplb.PickInfo // both must go the same way,
		other      smtplb.PickInfo // and this one need not
	}{
		{smtplb.HashKey, smtplb.PickInfo{Key: key, From: from, Domain: domain}, smtplb.PickInfo{Key: key, From: "b@x.example", Domain: "y"}, smtplb.PickInfo{Key: "%d", From: from, Domain: domain}},
		{smtplb.HashKey, smtplb.PickInfo{From: from, Domain: domain}, smtplb.PickInfo{From: from, Domain: "y"}, smtplb.PickInfo{From: "%d@sender.example", Domain: domain}},
		{smtplb.HashKey, smtplb.PickInfo{From: null, Domain: domain}, smtplb.PickInfo{Domain: domain}, smtplb.PickInfo{Domain: "%d"}},
		{smtplb.HashSender, smtplb.PickInfo{Key: key, From: from, Domain: domain}, smtplb.PickInfo{Key: "x", From: from, Domain: "y"}, smtplb.PickInfo{Key: key, From: "%d@sender.example", Domain: domain}},
		{smtplb.HashSender, smtplb.PickInfo{Key: key, Domain: domain}, smtplb.PickInfo{Key: "x", Domain: domain}, smtplb.PickInfo{Key: key, Domain: "%d"}},
		{smtplb.HashSenderDomain, smtplb.PickInfo{Key: key, From: from, Domain: domain}, smtplb.PickInfo{From: `"b@c"@sender.example`}, smtplb.PickInfo{From: "a@%d.example", Domain: domain}},
		{smtplb.HashSenderDomain, smtplb.PickInfo{Key: key, Domain: domain}, smtplb.PickInfo{Key: "x", Domain: domain}, smtplb.PickInfo{Key: key, Domain: "%d"}},
		{smtplb.HashRecipientDomain, smtplb.PickInfo{Key: key, From: from, Domain: domain}, smtplb.PickInfo{Key: "x", From: "b@y", Domain: domain}, smtplb.PickInfo{Key: key, From: from, Domain: "%d"}},
	} {
		var relays []smtplb.RelayView
		for i := range 50 {
			relays = append(relays, namedView{view(1), fmt.Sprint("relay-", i)})
		}
		p := smtplb.Hash(smtplb.HashOptions{By: test.by}).NewPicker(relays)
		skip := smtplb.Bitset{0}
		test.info.Skip, test.like.Skip = skip, skip
		home := p.Pick(test.info)
		if got := p.Pick(test.like); got != home {
			t.Errorf("by %v: %+v goes to %d, %+v to %d", test.by, test.info, home, test.like, got)
		}
		elsewhere := 0
		for i := range 100 {
			o := test.other
			for _, s := range []*string{&o.Key, &o.From, &o.Domain} {
				*s = strings.ReplaceAll(*s, "%d", fmt.Sprint(i))
			}
			o.Skip = skip
			if p.Pick(o) != home {
				elsewhere++
			}
		}
		if elsewhere < 80 {
			t.Errorf("by %v: of 100 like %+v only %d went elsewhere", test.by, test.other, elsewhere)
		}
	}
}

type namedView struct {
	view
	name string
}

func (v namedView) Name() string { return v.name }

// A tenant's mail leaves through one relay, through another while that one is down, and through the first again.
func TestHashInAPool(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, func(c *smtplb.Config) { c.Balancer = smtplb.Hash(smtplb.HashOptions{}) })
		defer h.close()
		send := func(key string) string {
			e := envelope("x@example.com")
			e.Key = key
			r, err := h.pool.Deliver(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			return r.Recipients[0].Relay
		}
		homes := map[string]string{}
		used := map[string]bool{}
		for k := range 40 {
			key := fmt.Sprint("tenant-", k)
			homes[key] = send(key)
			used[homes[key]] = true
		}
		if len(used) != 4 {
			t.Fatalf("40 tenants on %v", used)
		}
		h.relays[1].Kill()
		for range 3 {
			for key, home := range homes {
				if got := send(key); got == "r1" || home != "r1" && got != home {
					t.Errorf("%s went from %s to %s", key, home, got)
				}
			}
		}
	})
}

func TestFirstAvailable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Balancer = smtplb.FirstAvailable()
			c.Relays[0].Conns.Max, c.Relays[1].Conns.Max = 2, 1
			c.Relays[2].Weight = 100
		})
		defer h.close()
		for range 10 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff([]int{10, 0, 0}, h.accepted()); d != "" {
			t.Error(d)
		}
		for _, r := range h.relays {
			r.On(smtptest.EndOfData).Delay(time.Second)
		}
		var wg sync.WaitGroup
		for range 5 { // two fit on the first, one on the second
			wg.Go(func() { h.pool.Deliver(t.Context(), envelope("x@example.com")) })
		}
		wg.Wait()
		if d := cmp.Diff([]int{12, 1, 2}, h.accepted()); d != "" {
			t.Error(d)
		}
	})
}

// Without a word about balancers a relay that got slow gets what it can take, and the others the rest; with time for all, shares are the weights'.
func TestDefaultIsAdaptive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Relays[0].Weight = 2
			for i := range c.Relays {
				c.Relays[i].Conns.Max = -1
			}
		})
		defer h.close()
		for range 400 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff([]int{200, 100, 100}, h.accepted()); d != "" {
			t.Error(d)
		}
		h.relays[1].On(smtptest.EndOfData).Delay(time.Minute)
		for _, i := range []int{0, 2} {
			h.relays[i].On(smtptest.EndOfData).Delay(100 * time.Millisecond)
		}
		var wg sync.WaitGroup
		for range 1000 { // 50 a second: five at a time are in flight on the two that are well
			wg.Go(func() {
				if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		wg.Wait()
		if n := h.accepted()[1] - 100; n > 20 { // an equal share would be 250
			t.Errorf("the slow one got %d of 1000", n)
		}
	})
}

// What RelayView.Latency is made of.
func TestLatencyOfARelay(t *testing.T) {
	type step func(h *house)
	send := func(h *house) {
		h.Helper()
		if _, err := h.pool.Deliver(h.Context(), envelope("x@example.com")); err != nil {
			h.Error(err)
		}
	}
	try := func(h *house) { h.pool.Deliver(h.Context(), envelope("x@example.com")) }
	slow := func(s smtptest.Stage, d time.Duration) step {
		return func(h *house) { h.relays[0].On(s).Delay(d) }
	}
	for _, test := range []struct {
		name   string
		change func(c *smtplb.Config)
		steps  []step
		want   time.Duration
	}{
		{"not known", nil, nil, 0},
		{"dialling and envelope", nil, []step{slow(smtptest.Connect, 2*time.Second), slow(smtptest.Rcpt, time.Second), send}, 3 * time.Second},
		{"not the message", nil, []step{slow(smtptest.Rcpt, time.Second), slow(smtptest.EndOfData, time.Minute), send}, time.Second},
		{"a kept connection isn't dialled for", nil, []step{slow(smtptest.Connect, 2*time.Second), slow(smtptest.Rcpt, time.Second), send, send}, 2 * time.Second},
		{"a refusal is no sample", nil, []step{slow(smtptest.Rcpt, time.Second), func(h *house) { h.relays[0].On(smtptest.Data).Reply(451, "4.3.0 no") }, try}, 0},
		{"nor is a refused message", nil, []step{slow(smtptest.Rcpt, time.Second), func(h *house) { h.relays[0].On(smtptest.EndOfData).Reply(451, "4.3.0 no") }, try}, 0},
		{"nor a dead relay", nil, []step{func(h *house) { h.relays[0].Kill() }, try}, 0},
		{"our timeout is one", func(c *smtplb.Config) { c.Relays[0].Timeouts.Command = 20 * time.Second }, []step{slow(smtptest.Mail, time.Hour), try}, 20 * time.Second},
		{"the mean of two", nil, []step{send, slow(smtptest.Mail, 2*time.Second), send}, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &picker{pick: func(smtplb.PickInfo) int { return 0 }}
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Balancer = p
					if test.change != nil {
						test.change(c)
					}
				})
				defer h.close()
				for _, s := range test.steps {
					s(h)
				}
				if got := p.seen()[0][0].Latency(); got < test.want || got > test.want+time.Millisecond {
					t.Errorf("%v, want %v", got, test.want)
				}
			})
		})
	}
}

// A context that ends early doesn't make a relay look quick: the answer that it didn't wait for says only that it takes longer.
func TestLatencyOfCallersInAHurry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &picker{pick: func(smtplb.PickInfo) int { return 0 }}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Balancer = p })
		defer h.close()
		h.relays[0].On(smtptest.Mail).Delay(10 * time.Second)
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			h.pool.Deliver(ctx, envelope("x@example.com"))
			cancel()
		}
		if got := p.seen()[0][0].Latency(); got < 10*time.Second-time.Millisecond {
			t.Errorf("%v, and it takes 10s", got)
		}
	})
}

// Key and Stream come to the picker, and into a retry.
func TestKeyAndStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var infos []string
		p := &picker{}
		p.pick = func(i smtplb.PickInfo) int {
			infos = append(infos, fmt.Sprintf("%s/%s/%d", i.Key, i.Stream, i.Attempt))
			return -1
		}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Balancer = p })
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).Times(1).Reply(450, "4.2.1 later")
		e := envelope("x@example.com")
		e.Key, e.Stream = "tenant 7", "bulk"
		r, err := h.pool.Deliver(t.Context(), e)
		if err == nil {
			t.Fatal(r)
		}
		if _, err = h.pool.Deliver(t.Context(), r.Retry(e)); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff([]string{"tenant 7/bulk/1", "tenant 7/bulk/1"}, infos); d != "" {
			t.Error(d)
		}
		for _, test := range []struct {
			key, stream, field string
		}{
			{strings.Repeat("k", 1024), strings.Repeat("s", 64), ""},
			{strings.Repeat("k", 1025), "", "Key"},
			{"", strings.Repeat("s", 65), "Stream"},
		} {
			e := envelope("x@example.com")
			e.Key, e.Stream = test.key, test.stream
			_, err := h.pool.Deliver(t.Context(), e)
			var ee *smtplb.EnvelopeError
			if errors.As(err, &ee) != (test.field != "") || ee != nil && ee.Field != test.field {
				t.Errorf("%q of %d and %d bytes: %v", test.field, len(test.key), len(test.stream), err)
			}
		}
	})
}

func TestBitset(t *testing.T) {
	b := smtplb.Bitset{1 << 3, 1 << 63}
	for i := range 300 {
		if b.Has(i) != (i == 3 || i == 127) {
			t.Errorf("Has(%d) = %v", i, b.Has(i))
		}
	}
	if smtplb.Bitset(nil).Has(0) || b.Count() != 2 {
		t.Error(b.Count())
	}
}
