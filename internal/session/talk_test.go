package session_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
)

// On a real socket the end of a message goes out in one go with the look for what came too early, and with the waiting for the answer. What can't be seen in
// memory is seen here.

// wired is a connection over TCP to a relay that f plays.
func wired(t *testing.T, cfg session.Config, f func(p *peer)) *session.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	end := meet(ln, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		p := newPeer(c)
		p.say("220 hi\r\n")
		f(p)
	})
	cfg.Network, cfg.Addr, cfg.TLS, cfg.LocalName = "tcp", ln.Addr().String(), session.TLSNone, "client.test"
	if cfg.Timeouts == (session.Timeouts{}) {
		cfg.Timeouts = session.DefaultTimeouts
	}
	c := dial(t, &cfg)
	t.Cleanup(func() {
		c.Close()
		end()
	})
	return c
}

// lateNext has nobody ride, and lets the relay do something before it says so: when everything was looked at but the socket.
type lateNext struct{ before func() }

func (l lateNext) Board() *session.Transaction { l.before(); return nil }
func (lateNext) Alight()                       {}

// What came before the terminator was written is no answer to the message, however late it came.
func TestWiredTooEarly(t *testing.T) {
	for said, want := range map[string]reply.Failure{"250 2.0.0 queued\r\n": reply.FailOutOfStep, "554 5.0.0 no\r\n": 0, "": reply.FailEOF} {
		now, done := make(chan bool), make(chan bool)
		c := wired(t, session.Config{}, func(p *peer) {
			p.chat("DATA")
			p.say("354 go on\r\n")
			<-now
			if said == "" {
				p.Close()
			}
			p.say(said)
			close(done)
			p.message()
		})
		tx := transaction("x@example.com")
		tx.Next = lateNext{func() {
			close(now)
			<-done
			for c.Alive() { // it is on its way
			}
		}}
		res := transact(t, c, tx)
		if res.Committed || res.End.Stage != reply.StageBody || res.End.Failure != want || c.Reusable() {
			t.Errorf("%q: %+v, committed %v, reusable %v", said, res.End, res.Committed, c.Reusable())
		}
		if said != "" && want == 0 && res.End.Reply.Code != 554 {
			t.Errorf("%q: %+v", said, res.End)
		}
	}
}

// What the socket doesn't take at once goes out as it takes it, and whole.
func TestWiredInParts(t *testing.T) {
	var got strings.Builder
	read := make(chan bool)
	narrow := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
		}
		return conn, err
	}
	c := wired(t, session.Config{Dial: narrow}, func(p *peer) {
		_ = p.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		p.chat("DATA")
		p.say("354 go on\r\n")
		<-read
		for {
			l, err := p.br.ReadString('\n')
			if err != nil || l == ".\r\n" {
				break
			}
			got.WriteString(l)
		}
		p.say("250 2.0.0 queued\r\n")
		p.chat("never")
	})
	text := strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n", 900) // fits into the last write
	tx := transaction("x@example.com")
	tx.Body, tx.Size = []byte(text), int64(len(text))
	tx.Next = lateNext{func() { time.AfterFunc(50*time.Millisecond, func() { close(read) }) }}
	if res := transact(t, c, tx); !accepted(res) || !res.Committed {
		t.Fatalf("%+v", res.End)
	}
	if got.String() != text {
		t.Errorf("%d bytes came of %d, or others", got.Len(), len(text))
	}
}

// After the terminator the caller's end waits for the grace, and the relay's silence for the timeout of the last reply.
func TestWiredSilence(t *testing.T) {
	silent := func(p *peer) {
		p.chat("DATA")
		p.say("354 go on\r\n")
		p.message()
		_, _ = io.Copy(io.Discard, p)
	}
	times := session.DefaultTimeouts
	times.Grace = 50 * time.Millisecond
	c := wired(t, session.Config{Timeouts: times}, silent)
	ctx, cancel := context.WithCancel(t.Context())
	tx := transaction("x@example.com")
	tx.Next = lateNext{func() { time.AfterFunc(50*time.Millisecond, cancel) }}
	var res session.Result
	begun := time.Now()
	c.Transact(ctx, tx, &res)
	if d := time.Since(begun); !res.Committed || res.End.Stage != reply.StageFinal || res.End.Failure != reply.FailCanceled || !errors.Is(res.End.Err, context.Canceled) || d < 100*time.Millisecond {
		t.Errorf("cancelled: %+v, committed %v, after %v", res.End, res.Committed, d)
	}
	times = session.DefaultTimeouts
	times.Body, times.Final = 20*time.Millisecond, 100*time.Millisecond
	c = wired(t, session.Config{Timeouts: times}, silent)
	begun = time.Now()
	res = transact(t, c, transaction("x@example.com"))
	if d := time.Since(begun); !res.Committed || res.End.Stage != reply.StageFinal || res.End.Failure != reply.FailTimeout || d < 100*time.Millisecond || d > 10*time.Second {
		t.Errorf("silent: %+v, committed %v, after %v", res.End, res.Committed, d)
	}
}

// Replies that came before their rider was there need no deadline; one of an earlier stage that has passed since is in nobody's way.
func TestWiredOldDeadline(t *testing.T) {
	times := session.DefaultTimeouts
	times.Final = 300 * time.Millisecond
	c := wired(t, session.Config{Timeouts: times}, ahead(t))
	all, _ := train(2, "text\r\n")
	if res := transact(t, c, all[0]); !accepted(res) || c.Rider() != all[1] {
		t.Fatalf("%+v, rider %v", res.End, c.Rider())
	}
	<-time.After(400 * time.Millisecond)
	if res := transact(t, c, all[1]); !accepted(res) || !c.Reusable() {
		t.Errorf("the rider: %+v, reusable %v", res.End, c.Reusable())
	}
}

// A message whose time is over before its end is written isn't written, not either where nothing had to be waited for before.
func TestWiredCut(t *testing.T) {
	c := wired(t, session.Config{}, ahead(t))
	all, _ := train(2, "text\r\n")
	if res := transact(t, c, all[0]); !accepted(res) || c.Rider() != all[1] {
		t.Fatalf("%+v, rider %v", res.End, c.Rider())
	}
	all[1].Cut = time.Now()
	if res := transact(t, c, all[1]); res.Committed || res.End.Stage != reply.StageBody || res.End.Failure != reply.FailTimeout || !res.End.Shortened {
		t.Errorf("%+v, committed %v", res.End, res.Committed)
	}
}

// ahead is a relay that takes two messages, and answers the second's envelope together with the first.
func ahead(t *testing.T) func(p *peer) {
	return func(p *peer) {
		p.chat("DATA")
		p.say("354 go on\r\n")
		p.message()
		p.say("250 2.0.0 queued\r\n250 fine\r\n250 fine\r\n354 go on\r\n")
		for range 3 {
			if p.line() == "" {
				t.Error("nobody rode")
			}
		}
		if p.message() {
			p.say("250 2.0.0 queued\r\n")
			p.chat("never")
		}
	}
}
