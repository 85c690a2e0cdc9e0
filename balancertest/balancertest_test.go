package balancertest_test

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/balancertest"
)

func TestOwnBalancers(t *testing.T) {
	for name, b := range map[string]func() smtplb.Balancer{
		"Adaptive":              smtplb.Adaptive,
		"RoundRobin":            smtplb.RoundRobin,
		"LeastInFlight":         smtplb.LeastInFlight,
		"Latency":               smtplb.Latency,
		"Random":                smtplb.Random,
		"FirstAvailable":        smtplb.FirstAvailable,
		"Hash":                  func() smtplb.Balancer { return smtplb.Hash(smtplb.HashOptions{}) },
		"Hash, sender, bounded": func() smtplb.Balancer { return smtplb.Hash(smtplb.HashOptions{By: smtplb.HashSender, Load: 1.25}) },
		"Hash, sender domain":   func() smtplb.Balancer { return smtplb.Hash(smtplb.HashOptions{By: smtplb.HashSenderDomain}) },
		"Hash, recipient": func() smtplb.Balancer {
			return smtplb.Hash(smtplb.HashOptions{By: smtplb.HashRecipientDomain, Load: 2})
		},
	} {
		t.Run(name, func(t *testing.T) { balancertest.Run(t, b) })
	}
}

// broken is a Balancer, and its Picker, that draws a relay as it should, but for what is changed.
type broken struct {
	pick   func(*broken, smtplb.PickInfo) int
	relays []smtplb.RelayView
}

func (b *broken) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	return &broken{pick: b.pick, relays: relays}
}

func (b *broken) Pick(info smtplb.PickInfo) int { return b.pick(b, info) }

// good is what a Picker should do.
func good(b *broken, info smtplb.PickInfo) int {
	chosen, sum := -1, 0.0
	for i, r := range b.relays {
		if w := r.Weight(); w > 0 && !info.Skip.Has(i) {
			if sum += w; rand.Float64()*sum < w || chosen < 0 {
				chosen = i
			}
		}
	}
	return chosen
}

// sharing keeps in the Balancer what belongs in the Picker.
type sharing struct{ broken }

func (b *sharing) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	b.relays = relays
	return b
}

type pickerless struct{}

func (pickerless) NewPicker([]smtplb.RelayView) smtplb.Picker { return nil }

var sink atomic.Pointer[[]int]

// The suite finds each of these, by the case that is there for it.
func TestFindsBroken(t *testing.T) {
	for _, tt := range []struct {
		name string
		by   string // the case that must find it
		says string
		pick func(*broken, smtplb.PickInfo) int
	}{
		{"picks what is skipped", "skipped", "in Skip", func(b *broken, info smtplb.PickInfo) int {
			info.Skip = make(smtplb.Bitset, len(info.Skip))
			return good(b, info)
		}},
		{"looks at the first word of Skip alone", "all but one skipped", "in Skip", func(b *broken, info smtplb.PickInfo) int {
			skip := make(smtplb.Bitset, len(info.Skip))
			skip[0] = info.Skip[0]
			info.Skip = skip
			return good(b, info)
		}},
		{"one too far", "idle", "no relay has", func(b *broken, info smtplb.PickInfo) int {
			if i := good(b, info); i == len(b.relays)-1 {
				return len(b.relays)
			}
			return good(b, info)
		}},
		{"gives up", "all but one skipped", "-1", func(b *broken, info smtplb.PickInfo) int {
			for range 20 {
				if i := rand.IntN(len(b.relays)); !info.Skip.Has(i) && b.relays[i].Weight() > 0 {
					return i
				}
			}
			return -1
		}},
		{"0 where nobody is left", "all skipped", "in Skip", func(b *broken, info smtplb.PickInfo) int { return max(0, good(b, info)) }},
		{"no other than -1 for nobody", "all skipped", "-2", func(b *broken, info smtplb.PickInfo) int {
			if i := good(b, info); i >= 0 {
				return i
			}
			return -2
		}},
		{"doesn't look at weights", "weight 0", "Weight is 0", func(b *broken, info smtplb.PickInfo) int {
			for i := range b.relays {
				if !info.Skip.Has(i) {
					return i
				}
			}
			return -1
		}},
		{"divides by the weight", "no weight at all", "panic", func(b *broken, info smtplb.PickInfo) int {
			sum := 0
			for _, r := range b.relays {
				sum += int(r.Weight() * 100)
			}
			_ = 1000 / sum
			return good(b, info)
		}},
		{"overflows", "extreme numbers", "-1", func(b *broken, info smtplb.PickInfo) int {
			best, least := -1, int64(1<<62)
			for i, r := range b.relays {
				if r.Weight() > 0 && !info.Skip.Has(i) {
					if q := int64(r.InFlight()+1) << 22 << 1; q >= 0 && q < least {
						best, least = i, q
					}
				}
			}
			return best
		}},
		{"writes into Skip", "skip is left alone", "a pick made", func(b *broken, info smtplb.PickInfo) int {
			i := good(b, info)
			if i >= 0 {
				info.Skip[i/64] |= 1 << (i % 64)
			}
			return i
		}},
		{"allocates", "allocations", "allocations", func(b *broken, info smtplb.PickInfo) int {
			s := make([]int, len(b.relays))
			sink.Store(&s)
			return good(b, info)
		}},
		{"trusts two looks to be the same", "changing numbers", "-1", func(b *broken, info smtplb.PickInfo) int {
			least := -1
			for i, r := range b.relays {
				if q := r.InFlight(); r.Weight() > 0 && !info.Skip.Has(i) && (least < 0 || q < least) {
					least = q
				}
			}
			for i, r := range b.relays {
				if r.Weight() > 0 && !info.Skip.Has(i) && r.InFlight() == least {
					return i
				}
			}
			return -1
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found(t, tt.by, tt.says, func() smtplb.Balancer { return &broken{pick: tt.pick} })
		})
	}
	t.Run("shares what it has", func(t *testing.T) {
		found(t, "one picker for each tier", "", func() smtplb.Balancer { return &sharing{broken{pick: good}} })
	})
	t.Run("no picker", func(t *testing.T) {
		found(t, "idle", "NewPicker returned nil", func() smtplb.Balancer { return pickerless{} })
	})
	t.Run("no balancer", func(t *testing.T) {
		found(t, "idle", "is nil", func() smtplb.Balancer { return nil })
	})
	t.Run("blocks", func(t *testing.T) { // in fake time: nobody waits for it
		synctest.Test(t, func(t *testing.T) {
			forEver := make(chan struct{})
			defer close(forEver)
			found(t, "idle", "still not done", func() smtplb.Balancer {
				return &broken{pick: func(*broken, smtplb.PickInfo) int { <-forEver; return -1 }}
			})
		})
	})
}

func TestFindsLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lock := make(chan struct{}, 1) // what waits for a sync.Mutex would keep fake time from passing
		found(t, "waits for nobody", "held up", func() smtplb.Balancer {
			return &broken{pick: func(b *broken, info smtplb.PickInfo) int {
				lock <- struct{}{}
				defer func() { <-lock }()
				for _, r := range b.relays {
					r.InFlight()
				}
				return good(b, info)
			}}
		})
	})
}

func found(t *testing.T, by, says string, b func() smtplb.Balancer) {
	t.Helper()
	switch err := balancertest.CheckCase(by, b); {
	case err == nil:
		t.Errorf("not found by %q", by)
	case !strings.Contains(err.Error(), says):
		t.Errorf("%q found something else: %v", by, err)
	}
}

// Check goes through all cases, and tells of each one that failed.
func TestCheckTellsOfAll(t *testing.T) {
	err := balancertest.Check(func() smtplb.Balancer { return pickerless{} })
	if err == nil {
		t.Fatal("nothing was found")
	}
	var got []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if name, _, ok := strings.Cut(line, ": with 1 relays: NewPicker returned nil"); ok {
			got = append(got, name)
		}
	}
	if diff := cmp.Diff(balancertest.CaseNames(), got); diff != "" {
		t.Errorf("the cases that failed (-want +got):\n%s", diff)
	}
}

// What is as it should be passes: the broken ones above differ from it by their one mistake.
func TestGoodPasses(t *testing.T) {
	if err := balancertest.Check(func() smtplb.Balancer { return &broken{pick: good} }); err != nil {
		t.Error(err)
	}
}
