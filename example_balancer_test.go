package smtplb_test

import (
	"context"
	"fmt"
	"log"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// reserve is a Balancer that keeps one relay for password resets and the like: bulk mail uses it only where nothing else is left.
type reserve struct{ relay string }

func (b reserve) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	p := reservePicker{all: smtplb.Adaptive().NewPicker(relays), weights: make([]float64, len(relays)), reserved: -1}
	for i, r := range relays {
		p.weights[i] = r.Weight()
		if r.Name() == b.relay {
			p.reserved = i
		}
	}
	return p
}

type reservePicker struct {
	all      smtplb.Picker // what decides about everything else
	weights  []float64
	reserved int
}

func (p reservePicker) Pick(info smtplb.PickInfo) int {
	i := p.all.Pick(info)
	if i != p.reserved || info.Stream != "bulk" {
		return i
	}
	for j, w := range p.weights { // it would be the reserved one's turn: the first other that can be used, or that one after all
		if j != p.reserved && w > 0 && !info.Skip.Has(j) {
			return j
		}
	}
	return i
}

// A Balancer of one's own. The package balancertest tells whether it is sound.
func ExampleBalancer() {
	first, second := smtptest.NewServer(), smtptest.NewServer()
	defer first.Close()
	defer second.Close()
	pool, err := smtplb.New(smtplb.Config{
		Balancer: reserve{relay: "first"},
		Relays:   []smtplb.Relay{{Name: "first", Addr: first.Addr}, {Name: "second", Addr: second.Addr}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	for _, stream := range []string{"bulk", "transactional"} {
		for range 10 {
			e := &smtplb.Envelope{
				Stream: stream, From: "shop@example.com", To: []string{"customer@example.org"},
				Body: smtplb.Bytes([]byte("Subject: Hello\n\nHello.\n")),
			}
			if _, err := pool.Deliver(context.Background(), e); err != nil {
				log.Fatal(err)
			}
		}
		fmt.Printf("%s: %d through the first, %d through the second\n", stream, len(first.Messages()), len(second.Messages()))
	}
	// Output:
	// bulk: 0 through the first, 10 through the second
	// transactional: 5 through the first, 15 through the second
}
