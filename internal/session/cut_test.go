package session_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
	"github.com/smtplb/smtplb/smtptest"
)

var cutAll = flag.Bool("cut.all", false, "TestCutAtEveryByte leaves none out where it takes long: TLS, and a long body")

// cuttable is what an in-memory connection can do.
type cuttable interface {
	net.Conn
	CutWriteAfter(bytes int64)
	CutReadAfter(bytes int64)
	Alive() bool
	ExactWrite() bool
}

// metered counts what goes over an in-memory connection.
type metered struct {
	cuttable
	wrote, read int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.cuttable.Read(p)
	m.read += int64(n)
	return n, err
}

func (m *metered) Write(p []byte) (int, error) {
	n, err := m.cuttable.Write(p)
	m.wrote += int64(n)
	return n, err
}

// blind hides that the connection tells exactly what it wrote, and whether it is alive.
type blind struct{ net.Conn }

// TestCutAtEveryByte cuts a connection at every byte of a transaction, in both directions. Whatever the session then reports has to agree with what the relay stored:
// an acceptance or a refusal is the truth, "unknown" comes only where the dot may have reached the relay, and where it is safe to go to
// another relay nothing is stored.
func TestCutAtEveryByte(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("A line of some length, so that the body needs more than one write.\r\n", 1200) // 81,600 bytes
	for _, how := range []struct {
		name string
		opts []smtptest.Option
		tls  session.TLS
	}{
		{"pipelined", nil, session.TLSNone},
		{"stepwise", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, session.TLSNone},
		{"pipelined TLS", []smtptest.Option{smtptest.WithTLS()}, session.TLSStart},
		{"stepwise TLS", []smtptest.Option{smtptest.WithTLS(), smtptest.WithoutExtensions("PIPELINING")}, session.TLSStart},
	} {
		for _, reused := range []bool{false, true} {
			for _, exact := range []bool{true, false} {
				for _, text := range []string{body, long} {
					if !*cutAll && (!exact || how.tls != session.TLSNone) && (text == long) == reused { // a long body on a new connection, a short one on an old
						continue
					}
					t.Run(fmt.Sprintf("%s/reused=%v/exact=%v/%d", how.name, reused, exact, len(text)), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							n := smtptest.NewNetwork()
							s := n.NewServer(addr, how.opts...)
							defer s.Close()
							cfg := config(n)
							if how.tls != session.TLSNone {
								secure(cfg, s, how.tls)
							}
							c := cut{T: t, server: s, cfg: cfg, reused: reused, exact: exact, text: text, seen: map[verdict.Move]int{}}
							m := c.one(-1, false) // not at all: what the whole comes to
							step := int64(1)
							switch {
							case *cutAll && text != long:
							case text == long && how.tls != session.TLSNone:
								step = 20_011
							case text == long:
								step = 997
							case how.tls != session.TLSNone:
								step = 17
							}
							if !thorough() {
								step *= 3
							}
							for _, readSide := range []bool{false, true} {
								most := m.wrote
								if readSide {
									most = m.read
								}
								for at := int64(0); at <= most; at += step {
									c.one(at, readSide)
								}
								for at := max(most-30, 0); at <= most && step > 1; at++ { // around the dot, or the reply to it, every byte
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
}

type cut struct {
	*testing.T
	server        *smtptest.Server
	cfg           *session.Config
	reused, exact bool
	text          string
	chunks        bool // by BDAT, where text isn't stuffed
	seen          map[verdict.Move]int
}

// one sends a message over a connection that is cut once that many bytes have gone out, or come in, since the transaction began.
func (c *cut) one(at int64, readSide bool) *metered {
	c.Helper()
	var m *metered
	cfg := *c.cfg
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := c.cfg.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		m = &metered{cuttable: nc.(cuttable)}
		if !c.exact {
			return blind{m}, nil
		}
		return m, nil
	}
	conn := dial(c.T, &cfg)
	defer conn.Close()
	if c.reused {
		if res := transact(c.T, conn, transaction("warm@example.com")); !accepted(res) {
			c.Fatalf("warming up: %+v", res)
		}
	}
	synctest.Wait()
	c.server.Reset()
	m.wrote, m.read = 0, 0
	if readSide {
		m.CutReadAfter(at)
	} else {
		m.CutWriteAfter(at)
	}
	tx := &session.Transaction{From: "a@example.com", To: []string{"x@example.com", "y@example.com"}, Body: []byte(c.text), Size: int64(len(c.text)), Chunks: c.chunks}
	res := transact(c.T, conn, tx)
	reusable := conn.Reusable() && conn.Alive()
	conn.Close()
	synctest.Wait()
	stored := len(c.server.Messages())
	v := verdict.Judge(verdict.Fact{Stage: res.End.Stage, Reply: res.End.Reply, Failure: res.End.Failure, Committed: res.Committed, Reused: res.Reused, First: res.First})
	c.seen[v.Move]++

	where := fmt.Sprintf("cut after %d bytes (read side: %v): %v, %d stored: %+v", at, readSide, v.Move, stored, res)
	switch v.Move {
	case verdict.Accepted:
		if stored != 1 {
			c.Error(where)
		}
	case verdict.Unknown:
		if stored > 1 || !res.Committed {
			c.Error(where)
		}
	case verdict.NextRelay, verdict.Redial:
		if stored != 0 || res.Committed || v.Move == verdict.Redial && !c.reused {
			c.Error(where)
		}
	default:
		c.Errorf("no relay refused anything: %s", where)
	}
	whole := m.wrote // of the message, when nothing was cut
	if at < 0 && (v.Move != verdict.Accepted || !reusable || whole < int64(len(c.text))) {
		c.Fatalf("with no cut: %s", where)
	}
	if v.Move != verdict.Accepted && reusable {
		c.Errorf("the connection would be used again: %s", where)
	}
	for _, msg := range c.server.Messages() {
		want := c.text
		if !c.chunks {
			want = strings.ReplaceAll(want, "\r\n..", "\r\n.")
		}
		if string(msg.Data) != want || len(msg.To) != 2 {
			c.Errorf("stored %d bytes for %v: %s", len(msg.Data), msg.To, where)
		}
	}
	return m
}
