package session_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/smtptest"
)

// short reports a failed write although all bytes got there, from the write that has a terminator in it.
type short struct {
	cuttable
	armed bool
}

func (s *short) Write(p []byte) (int, error) {
	n, err := s.cuttable.Write(p)
	if s.armed && err == nil && strings.Contains(string(p), "\r\n.\r\n") {
		return strings.Index(string(p), "DATA\r\n"), errors.New("broken pipe")
	}
	return n, err
}

// TestSalvageBehindARider: where the last write failed, and yet all of it arrived, the answer to a rider's MAIL is not the one to the message.
func TestSalvageBehindARider(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		s.On(smtptest.EndOfData).Nth(1).Raw("421 4.3.0 later\r\n")
		cfg := config(n)
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := n.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &short{nc.(cuttable), true}, nil
		}
		c := dial(t, cfg)
		defer c.Close()
		all, _ := train(2, "hello\r\n")
		res := transact(t, c, all[0])
		if accepted(res) {
			t.Errorf("reported accepted (%v), stored %d", res.End.Reply, stored(s, all[0]))
		}
	})
}

// TestEnvelopeBehindAMessageStalls: a relay with small buffers works on a message for 3 minutes before it reads on, and takes what is behind it. That is as good as no envelope there.
func TestEnvelopeBehindAMessageStalls(t *testing.T) {
	for _, ride := range []bool{false, true} {
		t.Run(fmt.Sprint(ride), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				n.SetBuffer(1024)
				s := n.NewServer(addr)
				defer s.Close()
				s.On(smtptest.EndOfData).Nth(1).Delay(3 * time.Minute)
				c := dial(t, config(n))
				defer c.Close()
				all, r := train(2, "hello\r\n")
				all[1].To = nil
				for i := range 60 {
					all[1].To = append(all[1].To, fmt.Sprintf("%s%d@%s.example.com", strings.Repeat("x", 50), i, strings.Repeat("y", 45)))
				}
				if !ride {
					r.waiting = nil
				}
				begun := time.Now()
				res := transact(t, c, all[0])
				if !accepted(res) {
					t.Errorf("after %v: %+v boarded %d", time.Since(begun), res.End, r.boarded)
				}
			})
		})
	}
}

// brokenAfter reports that a write failed, although all of it arrived, from the one that has that text in it.
type brokenAfter struct {
	cuttable
	at string
}

func (s *brokenAfter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), s.at) {
		n, err := s.cuttable.Write(p)
		_ = err
		return n, errors.New("connection reset by peer")
	}
	return s.cuttable.Write(p)
}

// TestRefusalReadBehindAFailedWrite: a refusal of one recipient that is read after a write failed is about that one.
func TestRefusalReadBehindAFailedWrite(t *testing.T) {
	for _, ext := range []bool{true, false} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			var opts []smtptest.Option
			if ext {
				opts = append(opts, smtptest.WithoutExtensions("PIPELINING"))
			}
			s := n.NewServer(addr, opts...)
			defer s.Close()
			s.On(smtptest.Rcpt).For("u80@example.com").Reply(550, "5.1.1 No such user")
			cfg := config(n)
			at := "u80@"
			if !ext {
				at = "u63@"
				s.On(smtptest.Rcpt).For("u63@example.com").Reply(550, "5.1.1 No such user")
			}
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := n.DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &brokenAfter{nc.(cuttable), at}, nil
			}
			c := dial(t, cfg)
			defer c.Close()
			var to []string
			for i := range 100 {
				to = append(to, fmt.Sprintf("u%d@example.com", i))
			}
			res := transact(t, c, transaction(to...))

			if res.End.Stage == reply.StageRcpt && res.End.Reply.Permanent() {
				t.Error("all are refused by what was said of one")
			}
		})
	}
}
