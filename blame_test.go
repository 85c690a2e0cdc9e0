package smtplb_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/smtp"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Slow but well relays, callers who leave (or have less than 2 s): nobody is to blame.
func TestSlowRelaysAndHastyCallersAreNotBlamed(t *testing.T) {
	t.Parallel()
	seeds := uint64(200)
	if !smtplb.Thorough() {
		seeds = 60
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 3))
				n := smtptest.NewNetwork()
				cfg := smtplb.Config{Dial: n.DialContext}
				n.SetLatency(time.Duration(r.IntN(30))*time.Millisecond, time.Duration(r.IntN(30))*time.Millisecond)
				if r.IntN(2) == 0 {
					n.SetBuffer(100)
				}
				var servers []*smtptest.Server
				for i := range 1 + r.IntN(3) {
					addr := fmt.Sprintf("127.0.0.%d:25", 1+i)
					var opts []smtptest.Option
					rc := smtplb.Relay{Addr: addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: 1 + r.IntN(3)}, Breaker: smtplb.Breaker{Consecutive: 1}}
					if r.IntN(2) == 0 {
						opts = append(opts, smtptest.WithAuth("u", "p"))
						rc.Auth = func(ctx context.Context, _ smtplb.AuthRequest) (smtp.Auth, error) {
							select {
							case <-time.After(500 * time.Millisecond):
								return upAuth{}, nil
							case <-ctx.Done():
								return nil, ctx.Err()
							}
						}

						if r.IntN(2) == 0 {
							rc.Auth = nil
							rc.Username, rc.Password = "u", "p"
						}
					}
					if r.IntN(3) == 0 {
						opts = append(opts, smtptest.WithTLS())
						rc.TLS = smtplb.TLSStartTLS
					}
					s := n.NewServer(addr, opts...)
					if rc.TLS == smtplb.TLSStartTLS {
						rc.TLSConfig = s.ClientTLS()
						rc.TLSConfig.CurvePreferences = cheap
					}
					for st := smtptest.Connect; st < smtptest.Idle; st++ {
						if st != smtptest.Body {
							s.On(st).Delay(time.Duration(r.IntN(900)) * time.Millisecond)
						}
					}
					servers = append(servers, s)
					cfg.Relays = append(cfg.Relays, rc)
				}
				pool, err := smtplb.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				for range 8 {
					r := rand.New(rand.NewPCG(r.Uint64(), 3))
					wg.Go(func() {
						for range 5 {
							ctx, cancel := context.WithCancel(t.Context())
							if r.IntN(2) == 0 {
								time.AfterFunc(time.Duration(r.IntN(9000))*time.Millisecond, cancel)
							} else {
								ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(1999))*time.Millisecond)
							}
							pool.Deliver(ctx, envelope("x@example.com", "y@example.com"))
							cancel()
						}
					})
				}
				if r.IntN(3) == 0 {
					time.Sleep(time.Duration(r.IntN(9000)) * time.Millisecond)
					pool.Close()
				}
				wg.Wait()
				for _, s := range pool.Stats().Relays {
					if s.Faults != 0 || s.Breaker != "closed" {
						t.Errorf("%+v", s)
					}
				}
				pool.Close()
				for _, s := range servers {
					s.Close()
				}
			})
		})
	}
}

type upAuth struct{}

func (upAuth) Start(*smtp.ServerInfo) (string, []byte, error) {
	return "PLAIN", []byte("\x00u\x00p"), nil
}
func (upAuth) Next([]byte, bool) ([]byte, error) { return nil, nil }
