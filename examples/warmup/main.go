// Warmup puts a new relay beside an old one: it gets a little more each day, and the old one the rest.
//
//	go run ./examples/warmup
//
// It starts both relays inside its process, sends 2,000 messages a day for four days, and ends its pool every day at noon and makes another, as a process that is started again does: how far the warm-up
// is lies in a file. All that in fake time (package testing/synctest), in about ten seconds. It prints what each relay stored:
//
//	day 1: new relay 200 of 200, old relay 1800
//
// and so on; the numbers of the new relay differ by a few. It never gets more than the day's cap; from the fourth day on it gets the half that its weight says.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// config is the part to copy.
func config(file string) smtplb.Config {
	return smtplb.Config{
		Relays: []smtplb.Relay{
			{Name: "old", Addr: "old.test:25", TLS: smtplb.TLSNone},
			{Name: "new", Addr: "new.test:25", TLS: smtplb.TLSNone, Warmup: smtplb.Warmup{Curve: smtplb.SparkPostCurve()}}, // 200, 500, 1000, 2000, …
		},
		Store: smtplb.NewFileStore(file), // how far the warm-up is, for the next process
	}
}

const (
	days   = 4
	perDay = 2000
)

// result is what the relays stored.
type result struct {
	fresh, old, caps [days]int
	copies           map[string]int // by recipient
	plan             string         // what Explain says on the first day at noon
}

func main() {
	// Fake time is testing/synctest's, and wants a *testing.T. Package testing parses the command line for itself: it gets an empty one.
	os.Args = os.Args[:1]
	everything := func(string, string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "warmup", F: func(t *testing.T) {
		dir, err := os.MkdirTemp("", "warmup")
		if err != nil {
			t.Fatal(err)
		}
		r := demo(t, filepath.Join(dir, "state"), days)
		r.print(os.Stdout)
		os.RemoveAll(dir)
		os.Exit(0) // before package testing says PASS
	}}}, nil, nil)
}

func demo(t *testing.T, file string, last int) *result {
	r := &result{copies: make(map[string]int)}
	synctest.Test(t, func(t *testing.T) { r.run(t, file, last) })
	return r
}

func (r *result) run(t *testing.T, file string, last int) {
	began := time.Now() // midnight, in UTC
	day := func() int { return min(int(time.Since(began)/(24*time.Hour)), days-1) }
	network := smtptest.NewNetwork()
	var mu sync.Mutex // guards r
	for addr, count := range map[string]*[days]int{"old.test:25": &r.old, "new.test:25": &r.fresh} {
		relay := network.NewServer(addr, smtptest.WithDiscard(), smtptest.WithStored(func(m *smtptest.Message) {
			mu.Lock()
			defer mu.Unlock()
			count[day()]++
			r.copies[m.To[0]]++
		}))
		defer relay.Close()
	}
	c := config(file)
	c.Dial = network.DialContext
	for half := range 2 * last { // each is a process of its own
		pool, err := smtplb.New(c)
		if err != nil {
			t.Fatal(err)
		}
		for i := range perDay / 2 {
			e := &smtplb.Envelope{
				From: "app@example.com", To: []string{fmt.Sprintf("customer-%d@example.org", half*perDay/2+i)},
				Body: smtplb.Bytes([]byte("From: app@example.com\r\nSubject: Hello\r\n\r\nHello.\r\n")),
			}
			if _, err := pool.Deliver(t.Context(), e); err != nil {
				t.Errorf("day %d: %v", day()+1, err)
			}
			if half == 0 && i == perDay/2-1 {
				plan, err := pool.Explain(t.Context(), e)
				if err != nil {
					t.Error(err)
				}
				r.plan = plan.String()
			}
			r.caps[day()] = pool.Stats().Relays[1].Warmup.Cap
			<-time.After(24 * time.Hour / perDay)
		}
		if err := pool.Shutdown(context.Background()); err != nil { // gives back what was set aside of the day's cap
			t.Error(err)
		}
	}
}

func (r *result) print(w io.Writer) {
	for i := range days {
		fmt.Fprintf(w, "day %d: new relay %d of %d, old relay %d\n", i+1, r.fresh[i], r.caps[i], r.old[i])
	}
	fmt.Fprintf(w, "Explain, at noon of the first day:\n%s\n", r.plan)
}
