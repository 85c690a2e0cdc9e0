package session_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
	"github.com/smtplb/smtplb/smtptest"
)

// rides lets one transaction after the other ride.
type rides struct {
	waiting  []*session.Transaction
	boarded  int
	alighted int
}

func (r *rides) Board() *session.Transaction {
	if r.boarded == len(r.waiting) {
		return nil
	}
	r.boarded++
	return r.waiting[r.boarded-1]
}

func (r *rides) Alight() { r.boarded--; r.alighted++ }

// train makes n messages of which each rides behind the one before.
func train(n int, text string) ([]*session.Transaction, *rides) {
	r := new(rides)
	all := make([]*session.Transaction, n)
	for i := range all {
		all[i] = &session.Transaction{
			From: fmt.Sprintf("from%d@example.com", i), To: []string{fmt.Sprintf("to%d@example.com", i)},
			Body: []byte(fmt.Sprintf("Subject: %d\r\n\r\n", i) + text), Next: r,
		}
		all[i].Size = int64(len(all[i].Body))
	}
	r.waiting = all[1:]
	return all, r
}

// stored are the messages that the server has from the sender of tx.
func stored(s *smtptest.Server, tx *session.Transaction) (n int) {
	for _, m := range s.Messages() {
		if m.From == tx.From {
			n++
		}
	}
	return n
}

func TestRides(t *testing.T) {
	for _, size := range []int{10, 60_000, 65_536, 200_000, 1 << 20} {
		for _, tls := range []bool{false, true} {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				var opts []smtptest.Option
				if tls {
					opts = append(opts, smtptest.WithTLS())
				}
				s := n.NewServer(addr, opts...)
				defer s.Close()
				n.SetLatency(10*time.Millisecond, 10*time.Millisecond)
				cfg := config(n)
				if tls {
					secure(cfg, s, session.TLSStart)
				}
				c := dial(t, cfg)
				defer c.Close()
				all, _ := train(5, strings.Repeat(".123456789\r\n", size/12+1))
				begun := time.Now()
				for i, tx := range all {
					tx.Dots = true
					res := transact(t, c, tx)
					if !accepted(res) || !c.Reusable() {
						t.Fatalf("message %d of %d bytes: %+v", i, size, res)
					}
					var next *session.Transaction
					if i < len(all)-1 {
						next = all[i+1]
					}
					if c.Rider() != next {
						t.Fatalf("after message %d of %d bytes, %p rides, want %p", i, size, c.Rider(), next)
					}
				}
				// A round trip for the first envelope, and one for each message.
				if d := time.Since(begun); d > 6*20*time.Millisecond && size < 1<<20 { // that is as much as the network holds at a time
					t.Errorf("5 messages of %d bytes took %v", size, d)
				}
				if !c.Alive() {
					t.Error("the connection is not alive afterwards")
				}
				msgs := s.Messages()
				if len(msgs) != len(all) {
					t.Fatalf("%d messages are stored", len(msgs))
				}
				for i, m := range msgs {
					if m.From != all[i].From || !slices.Equal(m.To, all[i].To) || string(m.Data) != string(all[i].Body) {
						t.Errorf("stored as number %d: %v for %v, %d bytes", i, m.From, m.To, len(m.Data))
					}
				}
				c.Quit(t.Context())
			})
		}
	}
}

// TestNobodyRides: where the envelope could not be sent in one group, or the message that it would ride behind may need the connection again.
func TestNobodyRides(t *testing.T) {
	many := func(n int, addr string) (to []string) {
		for i := range n {
			to = append(to, fmt.Sprintf(addr, i))
		}
		return to
	}
	for _, tc := range []struct {
		name    string
		opts    []smtptest.Option
		change  func(first, second *session.Transaction)
		boarded bool // and alighted again
	}{
		{"no pipelining", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, nil, false},
		{"a refused recipient", nil, func(first, _ *session.Transaction) { first.To = []string{"x@example.com", "gone@example.com"} }, false},
		{"all or none", nil, func(_, second *session.Transaction) { second.All = true }, true},
		{"chunks", nil, func(_, second *session.Transaction) { second.Chunks = true }, true},
		{"too many commands", nil, func(_, second *session.Transaction) { second.To = many(63, "%d@example.com") }, true},
		{"too many bytes", nil, func(_, second *session.Transaction) {
			second.To = many(50, strings.Repeat("x", 60)+"%d@"+strings.Repeat("long.", 24)+"example.com")
		}, true},
		{"too many recipients for the relay", []smtptest.Option{smtptest.WithExtensions("PIPELINING", "LIMITS RCPTMAX=2")}, func(_, second *session.Transaction) { second.To = many(3, "%d@example.com") }, true},
		{"8-bit", []smtptest.Option{smtptest.WithoutExtensions("8BITMIME")}, func(_, second *session.Transaction) { second.EightBit = true }, true},
		{"UTF8", []smtptest.Option{smtptest.WithoutExtensions("SMTPUTF8")}, func(_, second *session.Transaction) { second.UTF8 = true }, true},
		{"DSN", []smtptest.Option{smtptest.WithoutExtensions("DSN")}, func(_, second *session.Transaction) { second.DSN = &session.DSN{Notify: "NEVER"} }, true},
		{"REQUIRETLS", nil, func(_, second *session.Transaction) { second.RequireTLS = true }, true},
		{"size", nil, func(_, second *session.Transaction) { second.Size = 1 << 40 }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, tc.opts...)
				defer s.Close()
				s.On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
				c := dial(t, config(n))
				defer c.Close()
				all, r := train(2, "hello\r\n")
				if tc.change != nil {
					tc.change(all[0], all[1])
				}
				res := transact(t, c, all[0])
				if !accepted(res) || !c.Reusable() || c.Rider() != nil || r.boarded != 0 || r.alighted != map[bool]int{true: 1}[tc.boarded] {
					t.Fatalf("%+v, rider %v, %+v", res, c.Rider(), r)
				}
				if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
					t.Errorf("the next: %+v", res)
				}
				if got := string(s.Messages()[0].Data); got != string(all[0].Body) {
					t.Errorf("stored %q", got)
				}
			})
		})
	}
}

// TestRideFaults: what happens to the two messages when something goes wrong between them.
func TestRideFaults(t *testing.T) {
	type want struct {
		first, second verdict.Move // second Invalid: its ride is over, and its Transact is not called
		stored        [2]int
		kept          bool // the connection, after the second
		others        int  // messages that are stored
		over          bool // nobody rides any more, although the first was accepted
	}
	for _, tc := range []struct {
		name   string
		script func(s *smtptest.Server)
		want   want
	}{
		{"first refused", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Nth(1).Reply(554, "5.7.1 no") }, want{verdict.Failed, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"first deferred", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Nth(1).Reply(451, "4.3.0 later") }, want{verdict.NextRelay, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"first answered with 421", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Nth(1).Reply(421, "4.3.0 later") }, want{verdict.NextRelay, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"first answered with 421, and the second's MAIL with 250", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 later\r\n")
		}, want{verdict.NextRelay, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"first answered with 421 and then 250", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 closing\r\n250 2.0.0 Ok\r\n").Stored()
		}, want{verdict.Accepted, verdict.Invalid, [2]int{1, 0}, false, 0, true}},
		{"first answered with 421 and then 250, and the end", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 closing\r\n250 2.0.0 Ok\r\n").Stored().ThenClose()
		}, want{verdict.Unknown, verdict.Invalid, [2]int{1, 0}, false, 0, false}},
		{"first answered with 421 and then 250, and the second's DATA refused", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 closing\r\n250 2.0.0 Ok\r\n").Stored()
			s.On(smtptest.Data).Nth(2).Reply(451, "4.3.0 later")
		}, want{verdict.Accepted, verdict.Invalid, [2]int{1, 0}, false, 0, true}},
		{"first answered with 421, and the second's DATA refused", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 closing\r\n").Unstored()
			s.On(smtptest.Data).Nth(2).Reply(451, "4.3.0 later")
		}, want{verdict.Unknown, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"first answered with 421, and the second's MAIL refused", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 closing\r\n").Unstored()
			s.On(smtptest.Mail).Nth(2).Reply(451, "4.3.0 later")
		}, want{verdict.NextRelay, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"first not answered", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Nth(1).Drop() }, want{verdict.Unknown, verdict.Invalid, [2]int{1, 0}, false, 0, false}},
		{"first answered with 354", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Nth(1).Reply(354, "go on") }, want{verdict.Unknown, verdict.Invalid, [2]int{0, 0}, false, 0, false}},
		{"second MAIL refused", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(2).Reply(550, "5.7.0 no") }, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, true, 0, false}},
		{"second MAIL deferred", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(2).Reply(451, "4.3.0 no") }, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, true, 0, false}},
		{"second MAIL refused and its recipient taken", func(s *smtptest.Server) {
			s.On(smtptest.Mail).Nth(2).Reply(550, "5.7.0 no")
			s.On(smtptest.Rcpt).Nth(2).Reply(250, "2.1.5 yes")
		}, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
		{"second MAIL refused and DATA taken", func(s *smtptest.Server) {
			s.On(smtptest.Mail).Nth(2).Reply(550, "5.7.0 no")
			s.On(smtptest.Data).Nth(2).Raw("354 go on\r\n")
		}, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
		{"second MAIL answered with 421", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(2).Reply(421, "4.7.0 bye") }, want{verdict.Accepted, verdict.Redial, [2]int{1, 0}, false, 0, false}},
		{"connection reset at the second MAIL", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(2).Drop() }, want{verdict.Accepted, verdict.Redial, [2]int{1, 0}, false, 0, false}},
		{"connection ended at the second MAIL", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(2).DropFIN() }, want{verdict.Accepted, verdict.Redial, [2]int{1, 0}, false, 0, false}},
		{"second MAIL not answered", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(2).Stall() }, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
		{"second RCPT refused", func(s *smtptest.Server) { s.On(smtptest.Rcpt).Nth(2).Reply(550, "5.1.1 no") }, want{verdict.Accepted, 0, [2]int{1, 0}, true, 0, false}},
		{"connection reset at the second RCPT", func(s *smtptest.Server) { s.On(smtptest.Rcpt).Nth(2).Drop() }, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
		{"second DATA refused", func(s *smtptest.Server) { s.On(smtptest.Data).Nth(2).Reply(554, "5.0.0 no") }, want{verdict.Accepted, verdict.Failed, [2]int{1, 0}, true, 0, false}},
		{"second DATA answered with 250", func(s *smtptest.Server) { s.On(smtptest.Data).Nth(2).Reply(250, "2.0.0 eh") }, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
		{"a reply too many after the first", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n")
		}, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
		{"a reply too many after the first, and the second's recipient refused", func(s *smtptest.Server) {
			s.On(smtptest.EndOfData).Nth(1).Raw("250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n")
			s.On(smtptest.Rcpt).Nth(2).Reply(550, "5.1.1 no")
		}, want{verdict.Accepted, verdict.NextRelay, [2]int{1, 0}, false, 0, false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr)
				defer s.Close()
				tc.script(s)
				c := dial(t, config(n))
				defer c.Close()
				all, r := train(2, "hello\r\n")
				first := transact(t, c, all[0])
				if got := move(first); got != tc.want.first {
					t.Errorf("first: %v, want %v: %+v", got, tc.want.first, first)
				}
				if r.boarded != 1 {
					t.Fatalf("%d boarded", r.boarded)
				}
				if tc.want.over || tc.want.second == verdict.Invalid && tc.want.first != verdict.Accepted {
					if c.Rider() != nil || c.Reusable() {
						t.Errorf("rider %v, reusable %v", c.Rider(), c.Reusable())
					}
				} else {
					if c.Rider() != all[1] || !c.Reusable() {
						t.Fatalf("rider %v, reusable %v", c.Rider(), c.Reusable())
					}
					second := transact(t, c, all[1])
					if got := move(second); got != tc.want.second {
						t.Errorf("second: %v, want %v: %+v", got, tc.want.second, second)
					}
					if kept := tc.want.kept; second.Committed || c.Reusable() != kept {
						t.Errorf("second: committed %v, reusable %v", second.Committed, c.Reusable())
					} else if kept {
						if third := transact(t, c, transaction("x@example.com")); !accepted(third) {
							t.Errorf("the next on the connection: %+v", third)
						}
						tc.want.others++
					}
				}
				c.Close()
				synctest.Wait()
				if got := [2]int{stored(s, all[0]), stored(s, all[1])}; got != tc.want.stored || len(s.Messages()) != got[0]+got[1]+tc.want.others {
					t.Errorf("stored %v, want %v", got, tc.want.stored)
				}
			})
		})
	}
}

// move is what a result means for those recipients that were not refused by name; Invalid where all were.
func move(res session.Result) verdict.Move {
	if res.End.Stage == reply.StageRcpt && res.End.Reply.Code == 0 && res.End.Failure == 0 {
		return verdict.Invalid
	}
	return verdict.Judge(verdict.Fact{Stage: res.End.Stage, Reply: res.End.Reply, Failure: res.End.Failure, Committed: res.Committed, Reused: res.Reused, First: res.First}).Move
}

// TestSomebodyElsesEnvelope: a connection that carries a rider's envelope is of no use to another message.
func TestSomebodyElsesEnvelope(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		c := dial(t, config(n))
		defer c.Close()
		all, _ := train(2, "hello\r\n")
		if res := transact(t, c, all[0]); !accepted(res) || c.Rider() != all[1] {
			t.Fatalf("%+v", res)
		}
		res := transact(t, c, transaction("x@example.com"))
		if move(res) != verdict.NextRelay || c.Reusable() {
			t.Errorf("%+v, reusable %v", res, c.Reusable())
		}
		c.Quit(t.Context())
		synctest.Wait()
		if len(s.Messages()) != 1 {
			t.Errorf("%d messages are stored", len(s.Messages()))
		}
	})
}

// TestNoQuitBehindAnEnvelope: where a rider's envelope was sent, the relay may be waiting for a message, and would take a QUIT for one.
func TestNoQuitBehindAnEnvelope(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		var m *metered
		cfg := config(n)
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := n.DialContext(ctx, network, addr)
			if err == nil {
				m = &metered{cuttable: nc.(cuttable)}
			}
			return m, err
		}
		c := dial(t, cfg)
		all, _ := train(2, "hello\r\n")
		if res := transact(t, c, all[0]); !accepted(res) || c.Rider() != all[1] || c.Alive() {
			t.Fatalf("%+v, alive %v", res, c.Alive())
		}
		before := m.wrote
		c.Quit(t.Context())
		synctest.Wait()
		if m.wrote != before || len(s.Messages()) != 1 {
			t.Errorf("%d bytes were sent, %d messages are stored", m.wrote-before, len(s.Messages()))
		}
	})
}

// TestRideCancelled: the driver's context ends after the commit point. Its outcome stays open for the grace, and the connection is not used again.
func TestRideCancelled(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		s.On(smtptest.EndOfData).Nth(1).Delay(3 * time.Second)
		c := dial(t, config(n))
		defer c.Close()
		all, _ := train(2, "hello\r\n")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var res session.Result
		c.Transact(ctx, all[0], &res)
		if !accepted(res) || c.Reusable() || c.Rider() != nil {
			t.Errorf("%+v, reusable %v, rider %v", res, c.Reusable(), c.Rider())
		}
	})
}

// TestCutRideAtEveryByte is TestCutAtEveryByte for a message and one that rides behind it.
func TestCutRideAtEveryByte(t *testing.T) {
	for _, tls := range []bool{false, true} {
		for _, exact := range []bool{true, false} {
			t.Run(fmt.Sprintf("tls=%v/exact=%v", tls, exact), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := smtptest.NewNetwork()
					var opts []smtptest.Option
					if tls {
						opts = append(opts, smtptest.WithTLS())
					}
					s := n.NewServer(addr, opts...)
					defer s.Close()
					cfg := config(n)
					if tls {
						secure(cfg, s, session.TLSStart)
					}
					seen := map[[2]verdict.Move]int{}
					m := cutRide(t, s, cfg, exact, -1, false, seen)
					for _, readSide := range []bool{false, true} {
						most := m.wrote
						if readSide {
							most = m.read
						}
						step := int64(1)
						if tls && !*cutAll {
							step = 7
						}
						for at := int64(0); at <= most; at += step {
							cutRide(t, s, cfg, exact, at, readSide, seen)
						}
					}
					must := [][2]verdict.Move{{verdict.NextRelay, 0}, {verdict.Unknown, 0}, {verdict.Accepted, verdict.Unknown}, {verdict.Accepted, verdict.Accepted}}
					if !tls { // there the replies share records
						must = append(must, [2]verdict.Move{verdict.Accepted, verdict.Redial}, [2]verdict.Move{verdict.Accepted, verdict.NextRelay})
					}
					for _, must := range must {
						if seen[must] == 0 {
							t.Errorf("%v did not happen: %v", must, seen)
						}
					}
				})
			})
		}
	}
}

func cutRide(t *testing.T, s *smtptest.Server, to *session.Config, exact bool, at int64, readSide bool, seen map[[2]verdict.Move]int) *metered {
	t.Helper()
	var m *metered
	cfg := *to
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := to.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		m = &metered{cuttable: nc.(cuttable)}
		if !exact {
			return blind{m}, nil
		}
		return m, nil
	}
	c := dial(t, &cfg)
	defer c.Close()
	s.Reset()
	m.wrote, m.read = 0, 0
	if readSide {
		m.CutReadAfter(at)
	} else {
		m.CutWriteAfter(at)
	}
	all, _ := train(2, ".hello\r\n")
	all[0].Dots, all[1].Dots = true, true
	first := transact(t, c, all[0])
	moves := [2]verdict.Move{move(first)}
	if c.Rider() != nil {
		moves[1] = move(transact(t, c, all[1]))
	}
	reusable := c.Reusable() && c.Alive()
	c.Close()
	synctest.Wait()
	seen[moves]++
	where := fmt.Sprintf("cut after %d bytes (read side: %v): %v", at, readSide, moves)
	if at < 0 && (moves != [2]verdict.Move{verdict.Accepted, verdict.Accepted} || !reusable) {
		t.Fatal(where)
	}
	for i, v := range moves {
		n := stored(s, all[i])
		switch v {
		case verdict.Accepted:
			if n != 1 {
				t.Errorf("%s: message %d is stored %d times", where, i, n)
			}
		case verdict.Unknown:
			if n > 1 {
				t.Errorf("%s: message %d is stored %d times", where, i, n)
			}
		case verdict.NextRelay, verdict.Redial, verdict.Invalid:
			if n != 0 || v == verdict.Invalid && i == 0 {
				t.Errorf("%s: message %d is stored %d times", where, i, n)
			}
		default:
			t.Errorf("%s: nobody refused anything", where)
		}
	}
	for _, msg := range s.Messages() {
		i := slices.IndexFunc(all, func(tx *session.Transaction) bool { return tx.From == msg.From })
		if string(msg.Data) != string(all[i].Body) || !slices.Equal(msg.To, all[i].To) {
			t.Errorf("%s: stored %q for %v", where, msg.Data, msg.To)
		}
	}
	return m
}
