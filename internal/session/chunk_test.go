package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
	"github.com/smtplb/smtplb/smtptest"
)

var chunking = smtptest.WithExtensions("PIPELINING", "CHUNKING", "SIZE 10485760", "8BITMIME", "ENHANCEDSTATUSCODES")

// dotted is a message of about that many bytes with lines that begin with dots, one of them alone.
func dotted(size int) string {
	return "Subject: dots\r\n\r\n.\r\n..\r\n" + strings.Repeat(".line of text\r\nanother\r\n", size/24+1)
}

// TestSources sends messages from memory and from files, with DATA and with BDAT, of sizes around those of the writes.
func TestSources(t *testing.T) {
	for _, size := range []int{1, 1000, 65_400, 65_500, 65_536, 131_072, 262_144, 300_000, 1 << 20} {
		for _, tls := range []bool{false, true} {
			for _, chunks := range []bool{false, true} {
				for _, file := range []bool{false, true} {
					bubble(t, func(t *testing.T, n *smtptest.Network) {
						opts := []smtptest.Option{chunking}
						if tls {
							opts = append(opts, smtptest.WithTLS())
						}
						s := n.NewServer(addr, opts...)
						defer s.Close()
						cfg := config(n)
						if tls {
							secure(cfg, s, session.TLSStart)
						}
						c := dial(t, cfg)
						defer c.Close()
						text := dotted(size)
						tx := &session.Transaction{From: "a@example.com", To: []string{"x@example.com"}, Size: int64(len(text)), Dots: true, Chunks: chunks}
						if file {
							tx.File = strings.NewReader(text + "what is behind the message")
						} else {
							tx.Body = []byte(text)
						}
						for range 2 {
							if res := transact(t, c, tx); !accepted(res) || !res.Committed || !c.Reusable() {
								t.Fatalf("%d bytes, TLS %v, chunks %v, file %v: %+v", len(text), tls, chunks, file, res)
							}
						}
						for _, m := range s.Messages() {
							if string(m.Data) != text {
								t.Errorf("%d bytes, TLS %v, chunks %v, file %v: stored %d bytes", len(text), tls, chunks, file, len(m.Data))
							}
						}
						log := s.Transcript()
						if strings.Contains(log, "BDAT") != chunks {
							t.Errorf("chunks %v: %s", chunks, log)
						}
					})
				}
			}
		}
	}
}

// TestChunksOnlyWhereOffered: without CHUNKING, or without PIPELINING, DATA is used.
func TestChunksOnlyWhereOffered(t *testing.T) {
	for _, opt := range []smtptest.Option{smtptest.WithExtensions("PIPELINING"), smtptest.WithExtensions("CHUNKING")} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			s := n.NewServer(addr, opt)
			defer s.Close()
			c := dial(t, config(n))
			defer c.Close()
			tx := transaction("x@example.com")
			tx.Chunks = true
			if res := transact(t, c, tx); !accepted(res) {
				t.Fatalf("%+v", res)
			}
			if log := s.Transcript(); strings.Contains(log, "BDAT") {
				t.Error(log)
			}
		})
	}
}

// TestChunkFaults: BDAT is sent only once a recipient was taken, and what is said to it is about the message.
func TestChunkFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		all    bool
		script func(s *smtptest.Server)
		move   verdict.Move
		sent   bool // BDAT
		stored int
	}{
		{"all refused", false, func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(550, "5.1.1 no") }, verdict.Invalid, false, 0},
		{"one refused", false, func(s *smtptest.Server) { s.On(smtptest.Rcpt).Nth(1).Reply(550, "5.1.1 no") }, verdict.Accepted, true, 1},
		{"one refused, all wanted", true, func(s *smtptest.Server) { s.On(smtptest.Rcpt).Nth(1).Reply(550, "5.1.1 no") }, verdict.Invalid, false, 0},
		{"MAIL refused", false, func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(550, "5.7.0 no") }, verdict.NextRelay, false, 0},
		{"BDAT not known", false, func(s *smtptest.Server) { s.On(smtptest.Data).Reply(500, "5.5.1 what?") }, verdict.NextRelay, true, 0},
		{"BDAT out of order", false, func(s *smtptest.Server) { s.On(smtptest.Data).Reply(503, "5.5.1 what?") }, verdict.NextRelay, true, 0},
		{"message refused", false, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, "5.6.0 no") }, verdict.Failed, true, 0},
		{"message deferred", false, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(451, "4.3.0 no") }, verdict.NextRelay, true, 0},
		{"not answered", false, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Drop() }, verdict.Unknown, true, 1},
		{"not answered in time", false, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Stall() }, verdict.Unknown, true, 1},
		{"dropped in the middle", false, func(s *smtptest.Server) { s.On(smtptest.Body).After(100_000).Drop() }, verdict.NextRelay, true, 0},
		{"refused in the middle", false, func(s *smtptest.Server) { s.On(smtptest.Body).After(10).Reply(552, "5.3.4 too much").ThenDrop() }, verdict.NextRelay, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				n.SetBuffer(32 << 10) // so that the relay speaks while the message is being written
				s := n.NewServer(addr, chunking)
				defer s.Close()
				tc.script(s)
				c := dial(t, config(n))
				defer c.Close()
				text := dotted(300_000)
				tx := &session.Transaction{From: "a@example.com", To: []string{"x@example.com", "y@example.com"}, Body: []byte(text), Size: int64(len(text)), Chunks: true, All: tc.all}
				res := transact(t, c, tx)
				if got := move(res); got != tc.move {
					t.Errorf("%v, want %v: %+v", got, tc.move, res)
				}
				c.Close()
				synctest.Wait()
				if got := len(s.Messages()); got != tc.stored {
					t.Errorf("%d messages are stored, want %d", got, tc.stored)
				}
				if log := s.Transcript(); strings.Contains(log, "BDAT") != tc.sent {
					t.Error(log)
				}
			})
		})
	}
}

// brokenFile fails from some byte on.
type brokenFile struct {
	from int64
	err  error
}

func (f brokenFile) ReadAt(p []byte, at int64) (int, error) {
	for i := range p {
		if at+int64(i) >= f.from {
			return i, f.err
		}
		p[i] = "x\r\n"[(at+int64(i))%3]
	}
	return len(p), nil
}

// TestFileFails: a file that can't be read in the middle ends the message before the commit point, and it is nobody's fault but ours.
func TestFileFails(t *testing.T) {
	broken := errors.New("disk on fire")
	for _, chunks := range []bool{false, true} {
		for _, dots := range []bool{false, true} {
			for _, err := range []error{broken, io.EOF} {
				for _, from := range []int64{0, 1, 70_000, 299_999} {
					bubble(t, func(t *testing.T, n *smtptest.Network) {
						s := n.NewServer(addr, chunking)
						defer s.Close()
						c := dial(t, config(n))
						defer c.Close()
						tx := transaction("x@example.com")
						tx.Body, tx.File, tx.Size, tx.Dots, tx.Chunks = nil, brokenFile{from, err}, 300_000, dots, chunks
						res := transact(t, c, tx)
						if res.Committed || res.End.Failure != reply.FailSource || move(res) != verdict.Deferred || c.Reusable() {
							t.Errorf("chunks %v, dots %v, %v from %d on: %+v, reusable %v", chunks, dots, err, from, res, c.Reusable())
						}
						if want := err; want == broken && !errors.Is(res.End.Err, want) || want == io.EOF && !errors.Is(res.End.Err, io.ErrUnexpectedEOF) {
							t.Errorf("%v", res.End.Err)
						}
						c.Close()
						synctest.Wait()
						if len(s.Messages()) != 0 {
							t.Errorf("chunks %v, dots %v, %v from %d on: something is stored", chunks, dots, err, from)
						}
					})
				}
			}
		}
	}
}

// TestChangedWhileSent: a message that has lost its last line end would never be answered: its dot is text.
func TestChangedWhileSent(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		for _, size := range []int{2, 1000, 65_536, 65_537, 65_538, 300_000} {
			c := dial(t, config(n))
			tx := transaction("x@example.com")
			tx.Body = bytes.Repeat([]byte("x\n"), size/2)
			begun := time.Now()
			res := transact(t, c, tx)
			if res.Committed || res.End.Failure != reply.FailSource || c.Reusable() || time.Since(begun) > time.Second {
				t.Errorf("%d bytes: %+v", size, res)
			}
			c.Close()
		}
		synctest.Wait()
		if len(s.Messages()) != 0 {
			t.Error("something is stored")
		}
	})
}

// TestSlowBody: the body's timeout is one without progress, where that can be seen.
func TestSlowBody(t *testing.T) {
	for _, how := range []string{"exact", "blind"} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			n.SetBuffer(1000)
			l, err := n.Listen(addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				nc, err := l.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				_, _ = io.WriteString(nc, "220 slow ESMTP\r\n")
				line(nc, "EHLO")
				_, _ = io.WriteString(nc, "250-slow\r\n250 PIPELINING\r\n")
				line(nc, "DATA")
				_, _ = io.WriteString(nc, "250 ok\r\n250 ok\r\n354 go on\r\n")
				buf := make([]byte, 1000) // a kilobyte each 10 s: 50 KB take longer than any timeout but the last
				var all []byte
				for !bytes.HasSuffix(all, []byte("\r\n.\r\n")) {
					time.Sleep(10 * time.Second)
					k, err := nc.Read(buf)
					if err != nil {
						return
					}
					all = append(all, buf[:k]...)
				}
				_, _ = io.WriteString(nc, "250 stored\r\n")
			}()
			cfg := config(n)
			if how == "blind" {
				cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					nc, err := n.DialContext(ctx, network, addr)
					return blind{nc}, err
				}
			}
			c := dial(t, cfg)
			tx := transaction("x@example.com")
			tx.Body = []byte(strings.Repeat("0123456789012345678901234567890123456789012345678\r\n", 1000))
			tx.Size = int64(len(tx.Body))
			begun := time.Now()
			res := transact(t, c, tx)
			took := time.Since(begun)
			c.Close()
			<-done
			switch {
			case how == "exact" && (!accepted(res) || took < 5*time.Minute):
				t.Errorf("after %v: %+v", took, res)
			case how == "blind" && (res.End.Failure != reply.FailTimeout || !res.Committed || took > time.Minute):
				t.Errorf("blind, after %v: %+v", took, res)
			}
		})
	}
}

// line reads up to and with the line that begins with the verb.
func line(nc net.Conn, verb string) {
	var all []byte
	b := make([]byte, 1)
	for {
		if _, err := nc.Read(b); err != nil {
			return
		}
		if all = append(all, b[0]); b[0] != '\n' {
			continue
		}
		if bytes.HasPrefix(all, []byte(verb)) {
			return
		}
		all = all[:0]
	}
}

// TestCutChunkAtEveryByte is TestCutAtEveryByte for BDAT: its last byte is the commit point.
func TestCutChunkAtEveryByte(t *testing.T) {
	for _, reused := range []bool{false, true} {
		for _, exact := range []bool{true, false} {
			for _, text := range []string{dotted(10), dotted(70_000)} {
				t.Run(fmt.Sprintf("reused=%v/exact=%v/%d", reused, exact, len(text)), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := smtptest.NewNetwork()
						s := n.NewServer(addr, chunking)
						defer s.Close()
						c := cut{T: t, server: s, cfg: config(n), reused: reused, exact: exact, text: text, chunks: true, seen: map[verdict.Move]int{}}
						m := c.one(-1, false)
						for _, readSide := range []bool{false, true} {
							most, step := m.wrote, int64(1)
							if readSide {
								most = m.read
							}
							if most > 10_000 {
								step = 997
							}
							for at := int64(0); at <= most; at += step {
								c.one(at, readSide)
							}
							for at := max(most-30, 0); at <= most; at++ {
								c.one(at, readSide)
							}
						}
						if c.seen[verdict.Unknown] == 0 || c.seen[verdict.NextRelay]+c.seen[verdict.Redial] == 0 || reused && c.seen[verdict.Redial] == 0 {
							t.Errorf("too little happened: %v", c.seen)
						}
					})
				})
			}
		}
	}
}
