package memnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/memnet"
)

// dialPair returns the two ends of a connection over n.
func dialPair(t *testing.T, n *memnet.Network) (client, server *memnet.Conn) {
	t.Helper()
	l, err := n.Listen("relay.test:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return c.(*memnet.Conn), s.(*memnet.Conn)
}

func mustWrite(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("Write(%q) = %d, %v", s, n, err)
	}
}

func mustRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v, want %q", b, err, want)
	}
}

// wantErr checks that err is want, inside a *net.OpError of op.
func wantErr(t *testing.T, err error, op string, want error) {
	t.Helper()
	var oe *net.OpError
	if !errors.Is(err, want) || !errors.As(err, &oe) || oe.Op != op {
		t.Fatalf("error %v (%T), want a *net.OpError of %q with %v", err, err, op, want)
	}
}

func TestDial(t *testing.T) {
	n := memnet.New()
	_, err := n.DialContext(t.Context(), "tcp", "nobody.test:25")
	wantErr(t, err, "dial", syscall.ECONNREFUSED)

	l, err := n.Listen("relay.test:25")
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Listen("relay.test:25")
	wantErr(t, err, "listen", syscall.EADDRINUSE)

	waiting, err := n.DialContext(t.Context(), "tcp", "relay.test:25")
	if err != nil {
		t.Fatal(err)
	}
	if got := waiting.RemoteAddr(); got.Network() != "tcp" || got.String() != "relay.test:25" {
		t.Errorf("RemoteAddr = %s %s", got.Network(), got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = l.Accept()
	wantErr(t, err, "accept", net.ErrClosed)
	wantErr(t, l.Close(), "close", net.ErrClosed)
	_, err = waiting.Read(make([]byte, 1))
	wantErr(t, err, "read", syscall.ECONNRESET) // it was never accepted
	_, err = n.DialContext(t.Context(), "tcp", "relay.test:25")
	wantErr(t, err, "dial", syscall.ECONNREFUSED)

	again, err := n.Listen("relay.test:25") // the address is free
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	done, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = n.DialContext(done, "tcp", "relay.test:25")
	wantErr(t, err, "dial", context.Canceled)
}

// What is set before the other end is there holds from the first byte on.
func TestDialPrepares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		l, err := n.Listen("relay.test:25")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			s, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			s.Write([]byte("220 relay.test"))
		}()
		c, err := n.Dial(t.Context(), "relay.test:25", func(c *memnet.Conn) {
			synctest.Wait() // as long as a server that has its end takes to greet
			c.CutReadAfter(4)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); string(got) != "220 " || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestListenPortZero(t *testing.T) {
	n := memnet.New()
	a, err := n.Listen("relay.test:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Listen("relay.test:0")
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(a.Addr().String())
	if err != nil || host != "relay.test" || port == "0" || a.Addr() == b.Addr() {
		t.Errorf("addresses %v and %v, %v", a.Addr(), b.Addr(), err)
	}
}

func TestBlackhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		l, err := n.Listen("relay.test:25")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		n.Blackhole("relay.test:25", true)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		_, err = n.DialContext(ctx, "tcp", "relay.test:25")
		wantErr(t, err, "dial", context.DeadlineExceeded)
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("the dial took %v", d)
		}
		n.Blackhole("relay.test:25", false)
		if _, err = n.DialContext(t.Context(), "tcp", "relay.test:25"); err != nil {
			t.Error(err)
		}
	})
}

func TestLatency(t *testing.T) {
	const up, down = 30 * time.Millisecond, 70 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetLatency(up, down)
		start := time.Now()
		took := func(what string, want time.Duration) {
			t.Helper()
			if d := time.Since(start); d != want {
				t.Errorf("%s took %v, want %v", what, d, want)
			}
			start = time.Now()
		}
		client, server := dialPair(t, n)
		took("dial", up+down)
		mustWrite(t, client, "hello ")
		mustWrite(t, client, "world")
		took("write", 0)
		mustRead(t, server, "hello world")
		took("up", up)
		mustWrite(t, server, "good")
		mustRead(t, client, "good")
		took("down", down)
		mustWrite(t, server, "bye")
		if !client.Alive() {
			t.Error("Alive is false before the bytes have arrived")
		}
		server.Close()
		mustWrite(t, client, "lost") // the client can't know yet
		took("write", 0)
		if b, err := io.ReadAll(client); string(b) != "bye" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		took("end of stream", down)
		_, err := client.Write([]byte("x"))
		wantErr(t, err, "write", syscall.EPIPE)
	})
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetLatency(up, down)
		client, server := dialPair(t, n)
		mustWrite(t, server, "in flight")
		server.Reset()
		start := time.Now()
		_, err := client.Read(make([]byte, 10))
		wantErr(t, err, "read", syscall.ECONNRESET)
		if d := time.Since(start); d != down {
			t.Errorf("the reset took %v", d)
		}
		_, err = client.Write([]byte("x"))
		wantErr(t, err, "write", syscall.ECONNRESET)
	})
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetLatency(time.Minute, 0)
		if _, err := n.Listen("relay.test:25"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n.DialContext(ctx, "tcp", "relay.test:25")
		wantErr(t, err, "dial", context.DeadlineExceeded)
	})
}

func TestClose(t *testing.T) {
	a, b := memnet.Pipe()
	mustWrite(t, a, "last words")
	mustWrite(t, b, "unread")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
		t.Errorf("the peer read %q, %v", got, err)
	}
	_, err := b.Write([]byte("x"))
	wantErr(t, err, "write", syscall.EPIPE)
	_, err = a.Read(make([]byte, 1))
	wantErr(t, err, "read", net.ErrClosed)
	_, err = a.Write([]byte("x"))
	wantErr(t, err, "write", net.ErrClosed)
	wantErr(t, a.Close(), "close", net.ErrClosed)
	wantErr(t, a.CloseWrite(), "close", net.ErrClosed)
	wantErr(t, a.SetDeadline(time.Time{}), "set", net.ErrClosed)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseWrite(t *testing.T) {
	a, b := memnet.Pipe()
	mustWrite(t, a, "question")
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
		t.Errorf("the peer read %q, %v", got, err)
	}
	_, err := a.Write([]byte("x"))
	wantErr(t, err, "write", syscall.EPIPE)
	mustWrite(t, b, "answer")
	mustRead(t, a, "answer")
	a.Close()
	_, err = a.Write([]byte("x"))
	wantErr(t, err, "write", net.ErrClosed)
}

func TestReset(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		a, b := memnet.Pipe()
		mustWrite(t, a, "lost")
		a.Reset()
		_, err := b.Read(make([]byte, 10))
		wantErr(t, err, "read", syscall.ECONNRESET)
		_, err = b.Write([]byte("x"))
		wantErr(t, err, "write", syscall.ECONNRESET)
		_, err = a.Read(make([]byte, 1))
		wantErr(t, err, "read", net.ErrClosed)
		_, err = a.Write([]byte("x"))
		wantErr(t, err, "write", net.ErrClosed)
		a.Reset() // does nothing
		b.Reset()
	})
	t.Run("after drain", func(t *testing.T) {
		a, b := memnet.Pipe()
		mustWrite(t, a, "552 too big")
		a.ResetAfterDrain()
		_, err := b.Write([]byte("x"))
		wantErr(t, err, "write", syscall.ECONNRESET)
		mustRead(t, b, "552 too big")
		_, err = b.Read(make([]byte, 1))
		wantErr(t, err, "read", syscall.ECONNRESET)
	})
	t.Run("wakes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := memnet.New()
			n.SetBuffer(1)
			a, b := dialPair(t, n)
			errs := make(chan error, 2)
			go func() { _, err := b.Read(make([]byte, 1)); errs <- err }()
			go func() {
				n, err := b.Write([]byte("xyz"))
				if n != 1 {
					t.Errorf("Write = %d", n)
				}
				errs <- err
			}()
			synctest.Wait()
			a.Reset()
			for range 2 {
				if err := <-errs; !errors.Is(err, syscall.ECONNRESET) {
					t.Error(err)
				}
			}
		})
	})
}

func TestCloseWakesOwnCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetBuffer(1)
		a, _ := dialPair(t, n)
		errs := make(chan error, 2)
		go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
		go func() { _, err := a.Write([]byte("xyz")); errs <- err }()
		synctest.Wait()
		a.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetBuffer(4)
		a, b := dialPair(t, n)
		start := time.Now()
		timeout := func(err error, op string, want time.Duration) {
			t.Helper()
			wantErr(t, err, op, os.ErrDeadlineExceeded)
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("%v is no timeout", err)
			}
			if d := time.Since(start); d != want {
				t.Errorf("after %v, want %v", d, want)
			}
		}
		a.SetReadDeadline(start.Add(time.Second))
		_, err := a.Read(make([]byte, 1))
		timeout(err, "read", time.Second)
		_, err = a.Read(make([]byte, 1)) // it stays
		timeout(err, "read", time.Second)
		a.SetReadDeadline(time.Time{})
		mustWrite(t, b, "x")
		mustRead(t, a, "x")

		a.SetWriteDeadline(start.Add(3 * time.Second))
		n4, err := a.Write([]byte("123456"))
		if n4 != 4 {
			t.Errorf("Write = %d", n4)
		}
		timeout(err, "write", 3*time.Second)

		// Moved while somebody waits, later and then into the past.
		a.SetDeadline(start.Add(4 * time.Second))
		go func() {
			time.Sleep(500 * time.Millisecond)
			a.SetDeadline(start.Add(time.Hour))
			time.Sleep(5 * time.Second)
			a.SetDeadline(time.Unix(1, 0))
		}()
		_, err = a.Read(make([]byte, 1))
		timeout(err, "read", 8500*time.Millisecond)
		_, err = a.Write([]byte("1"))
		timeout(err, "write", 8500*time.Millisecond)

		// A passed deadline hides bytes that have arrived, as in package net.
		mustWrite(t, b, "y")
		_, err = a.Read(make([]byte, 1))
		timeout(err, "read", 8500*time.Millisecond)
		if got := a.Buffered(); got != 1 {
			t.Errorf("Buffered = %d", got)
		}
	})
}

func TestBuffer(t *testing.T) {
	const size = 3 << 20
	t.Run("unbounded", func(t *testing.T) {
		n := memnet.New()
		n.SetBuffer(-1)
		a, b := dialPair(t, n)
		mustWrite(t, a, strings.Repeat("x", size))
		if got := b.Buffered(); got != size {
			t.Errorf("Buffered = %d", got)
		}
	})
	t.Run("bounded", func(t *testing.T) {
		for _, buffer := range []int{0, 1, 1000} {
			n := memnet.New()
			n.SetBuffer(buffer)
			a, b := dialPair(t, n)
			data := make([]byte, size/max(1, 1000-buffer))
			for i := range data {
				data[i] = byte(i * i >> 3)
			}
			go func() {
				a.Write(data)
				a.Close()
			}()
			if got, err := io.ReadAll(b); err != nil || !slices.Equal(got, data) {
				t.Errorf("buffer %d: read %d of %d bytes, %v", buffer, len(got), len(data), err)
			}
		}
	})
	t.Run("default", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := memnet.Pipe()
			a.SetWriteDeadline(time.Now().Add(time.Second))
			n, err := a.Write(make([]byte, memnet.DefaultBuffer+1))
			if n != memnet.DefaultBuffer || b.Buffered() != n {
				t.Errorf("Write = %d, %v", n, err)
			}
			wantErr(t, err, "write", os.ErrDeadlineExceeded)
		})
	})
}

func TestConcurrentWritesAreWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetBuffer(7)
		a, b := dialPair(t, n)
		for _, s := range []string{"a", "b", "c"} {
			go a.Write([]byte(strings.Repeat(s, 100)))
		}
		got := make([]byte, 300)
		if _, err := io.ReadFull(b, got); err != nil {
			t.Fatal(err)
		}
		if runs := len(slices.Compact(got)); runs != 3 {
			t.Errorf("the bytes come in %d runs", runs)
		}
	})
}

func TestCut(t *testing.T) {
	for _, name := range []string{"write", "read"} {
		t.Run(name, func(t *testing.T) {
			a, b := memnet.Pipe()
			if name == "write" {
				a.CutWriteAfter(5)
			} else {
				b.CutReadAfter(5)
			}
			mustWrite(t, b, "unread")
			mustWrite(t, a, "abc")
			n, err := a.Write([]byte("defg"))
			if n != 2 {
				t.Errorf("Write = %d", n)
			}
			wantErr(t, err, "write", syscall.ECONNRESET)
			mustRead(t, b, "abcde")
			_, err = b.Read(make([]byte, 1))
			wantErr(t, err, "read", syscall.ECONNRESET)
			_, err = b.Write([]byte("x"))
			wantErr(t, err, "write", syscall.ECONNRESET)
			mustRead(t, a, "unread")
			_, err = a.Read(make([]byte, 1))
			wantErr(t, err, "read", syscall.ECONNRESET)
		})
	}
	t.Run("whole write", func(t *testing.T) {
		a, b := memnet.Pipe()
		a.CutWriteAfter(3)
		mustWrite(t, a, "abc") // all of it went out: no error yet
		mustRead(t, b, "abc")
		_, err := a.Write([]byte("d"))
		wantErr(t, err, "write", syscall.ECONNRESET)
	})
	t.Run("now", func(t *testing.T) {
		a, b := memnet.Pipe()
		a.CutWriteAfter(0)
		_, err := b.Read(make([]byte, 1))
		wantErr(t, err, "read", syscall.ECONNRESET)
		if a.Alive() || b.Alive() {
			t.Error("alive")
		}
	})
	t.Run("taken back", func(t *testing.T) {
		a, b := memnet.Pipe()
		a.CutWriteAfter(1)
		a.CutWriteAfter(-1)
		mustWrite(t, a, "abc")
		mustRead(t, b, "abc")
	})
}

func TestAlive(t *testing.T) {
	tests := []struct {
		name string
		do   func(self, peer *memnet.Conn)
		want bool
	}{
		{"fresh", func(self, peer *memnet.Conn) {}, true},
		{"own bytes unread by the peer", func(self, peer *memnet.Conn) { self.Write([]byte("x")) }, true},
		{"everything read", func(self, peer *memnet.Conn) { peer.Write([]byte("x")); self.Read(make([]byte, 9)) }, true},
		{"past deadline", func(self, peer *memnet.Conn) { self.SetDeadline(time.Unix(1, 0)) }, true},
		{"unread byte", func(self, peer *memnet.Conn) { peer.Write([]byte("x")) }, false},
		{"peer closed", func(self, peer *memnet.Conn) { peer.Close() }, false},
		{"peer half closed", func(self, peer *memnet.Conn) { peer.CloseWrite() }, false},
		{"peer reset", func(self, peer *memnet.Conn) { peer.Reset() }, false},
		{"closed", func(self, peer *memnet.Conn) { self.Close() }, false},
		{"half closed", func(self, peer *memnet.Conn) { self.CloseWrite() }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := memnet.Pipe()
			tt.do(a, b)
			if got := a.Alive(); got != tt.want {
				t.Errorf("Alive = %v", got)
			}
			if !a.ExactWrite() {
				t.Error("ExactWrite is false")
			}
		})
	}
}

func TestEmptyReadAndWrite(t *testing.T) {
	a, b := memnet.Pipe()
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("Read(nil) = %d, %v", n, err)
	}
	if n, err := a.Write(nil); n != 0 || err != nil {
		t.Errorf("Write(nil) = %d, %v", n, err)
	}
	b.Close()
	_, err := a.Write(nil)
	wantErr(t, err, "write", syscall.EPIPE)
}

func BenchmarkPingPong(b *testing.B) {
	x, y := memnet.Pipe()
	go func() {
		defer y.Close()
		io.Copy(y, y)
	}()
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		x.Write(buf)
		if _, err := io.ReadFull(x, buf); err != nil {
			b.Fatal(err)
		}
	}
	x.Close()
}
