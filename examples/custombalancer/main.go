// Custombalancer sends through the cheapest relay that has a connection free, and through dearer ones only what that can't take: a Balancer of a person's
// own, in 30 lines.
//
//	go run ./examples/custombalancer
//
// It starts three relays inside its process, of which each takes four messages at a time. It takes a moment, sends nothing anywhere else, and prints who got what:
//
//	one message at a time: own-postfix 12, provider-a 0, provider-b 0: 0.00 EUR
//	ten at a time: own-postfix 24, provider-a 24, provider-b 12: 0.05 EUR
//	to partner.example, one at a time: own-postfix 0, provider-a 0, provider-b 12: 0.01 EUR
//
// (in the second line numbers depend on the moment.)
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// cheapest is a Balancer. Which relays are well, which have a connection free, and which were tried for this message already is the pool's
// business: a Balancer only chooses among those that are left.
type cheapest struct {
	price   map[string]float64 // of a thousand messages, by the relay's name; nothing for one that isn't named
	reserve map[string]string  // a recipients' domain and the relay that is first for it
}

// NewPicker is called when the set of relays changes, or a weight: what takes time is done here. An index is that of relays.
func (b cheapest) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	p := &cheapestPicker{first: map[string]int{}}
	for i, r := range relays {
		if r.Weight() > 0 { // else it is to get nothing for now
			p.order = append(p.order, i)
		}
	}
	slices.SortStableFunc(p.order, func(i, j int) int {
		return cmp.Compare(b.price[relays[i].Name()], b.price[relays[j].Name()])
	})
	for domain, name := range b.reserve {
		for _, i := range p.order {
			if relays[i].Name() == name {
				p.first[domain] = i
			}
		}
	}
	return p
}

// cheapestPicker doesn't change any more: many goroutines use it at once, without a lock.
type cheapestPicker struct {
	order []int          // of relays, the cheapest first
	first map[string]int // by domain
}

// Pick is called for each message, and again for each failover of one, with the relays that can't be taken in Skip.
func (p *cheapestPicker) Pick(info smtplb.PickInfo) int {
	if i, ok := p.first[info.Domain]; ok && !info.Skip.Has(i) {
		return i
	}
	for _, i := range p.order {
		if !info.Skip.Has(i) {
			return i
		}
	}
	return -1 // nobody: the message waits for the first connection that becomes free, whoever's that is
}

var price = map[string]float64{"provider-a": 0.80, "provider-b": 1.20} // EUR; the own Postfix costs nothing

func main() {
	if err := demo(os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func demo(w io.Writer) error {
	names := []string{"provider-b", "own-postfix", "provider-a"}
	c := smtplb.Config{Balancer: cheapest{price: price, reserve: map[string]string{"partner.example": "provider-b"}}}
	for _, name := range names {
		relay := smtptest.NewServer() // in the place of a real one
		defer relay.Close()
		relay.On(smtptest.EndOfData).Delay(20 * time.Millisecond)
		c.Relays = append(c.Relays, smtplb.Relay{Name: name, Addr: relay.Addr, Conns: smtplb.Conns{Max: 4}})
	}
	pool, err := smtplb.New(c)
	if err != nil {
		return err
	}
	defer pool.Close()

	for _, load := range []struct {
		title           string
		to              string
		atOnce, inATurn int
	}{
		{"one message at a time", "customer@example.org", 1, 12},
		{"ten at a time", "customer@example.org", 10, 6},
		{"to partner.example, one at a time", "office@partner.example", 1, 12},
	} {
		by, err := send(pool, load.to, load.atOnce, load.inATurn)
		if err != nil {
			return err
		}
		cost := 0.0
		for name, n := range by {
			cost += float64(n) * price[name] / 1000
		}
		fmt.Fprintf(w, "%s: own-postfix %d, provider-a %d, provider-b %d: %.2f EUR\n", load.title, by["own-postfix"], by["provider-a"], by["provider-b"], cost)
	}
	return nil
}

// send lets several callers send a number of messages each, and counts by relay.
func send(pool *smtplb.Pool, to string, callers, each int) (by map[string]int, err error) {
	by = map[string]int{}
	var mu sync.Mutex // guards by and err
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				receipt, e := pool.Deliver(ctx, &smtplb.Envelope{
					From: "shop@example.com", To: []string{to},
					Body: smtplb.Bytes([]byte("From: shop@example.com\r\nSubject: Your order\r\n\r\nIt is on its way.\r\n")),
				})
				cancel()
				mu.Lock()
				if e != nil {
					err = e
				} else {
					by[receipt.Recipients[0].Relay]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return by, err
}
