package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

type arrival struct {
	data string
	at   time.Duration
}

// TestRelayDelayed, in fake time: each segment arrives half a round trip after it was sent, to the nanosecond, though the line is full of others.
func TestRelayDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 10 * time.Millisecond
		in, out := newPipe(), newPipe()
		begun := time.Now()
		ended := make(chan error, 1)
		go func() {
			err := relayDelayed(out, in.far, delay)
			out.Close()
			ended <- err
		}()
		var want []arrival
		go func() {
			for i := range 100 { // a hundred under way at a time, were it not for the pause
				if i == 50 {
					time.Sleep(3 * time.Millisecond)
				}
				_, _ = in.Write([]byte{byte(i)})
			}
			time.Sleep(time.Millisecond)
			in.Close()
		}()
		for i := range 100 {
			at := delay
			if i >= 50 {
				at += 3 * time.Millisecond
			}
			want = append(want, arrival{string([]byte{byte(i)}), at})
		}
		buf := make([]byte, 16)
		for i, w := range want {
			n, err := out.far.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if got := (arrival{string(buf[:n]), time.Since(begun)}); got != w {
				t.Fatalf("segment %d: %q after %v, want %q after %v", i, got.data, got.at, w.data, w.at)
			}
		}
		if _, err := out.far.Read(buf); !errors.Is(err, io.EOF) {
			t.Errorf("after the last segment: %v", err)
		}
		if at := time.Since(begun); at != delay+4*time.Millisecond {
			t.Errorf("the end came after %v", at)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestRelayDelayedLosesNothing: 8 MB, in pieces of all sizes, in order.
func TestRelayDelayedLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := make([]byte, 8<<20)
		for i := range all {
			all[i] = byte(i >> 8 * 31)
		}
		in, out := newPipe(), newPipe()
		begun := time.Now()
		go func() {
			_ = relayDelayed(out, in.far, 40*time.Millisecond)
			out.Close()
		}()
		go func() {
			for rest, n := all, 1; len(rest) > 0; n = n*3%100_003 + 1 {
				k, _ := in.Write(rest[:min(n, len(rest))])
				rest = rest[k:]
			}
			in.Close()
		}()
		got, err := io.ReadAll(out.far)
		if err != nil || !bytes.Equal(got, all) {
			t.Errorf("%d of %d bytes came, in order: %v; %v", len(got), len(all), bytes.Equal(got, all), err)
		}
		if d := time.Since(begun); d != 40*time.Millisecond {
			t.Errorf("it took %v: the line limits bandwidth", d)
		}
	})
}

// TestServeDelayed counts round trips: the handshake and the greeting take two, a command takes one, and so do three commands at once.
func TestServeDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rtt = 80 * time.Millisecond
		l := &pipeListener{conns: make(chan net.Conn)}
		s := newSink(sinkOptions{}, nil)
		go serveDelayed(l, func() (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				_ = s.converse(far)
				far.Close()
			}()
			return near, nil
		}, rtt)
		begun := time.Now()
		c, far := net.Pipe()
		l.conns <- far
		trips := func(write, reply string, want float64) {
			t.Helper()
			begun := time.Now()
			if write != "" { // the greeting comes by itself
				if _, err := io.WriteString(c, write); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(reply))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != reply {
				t.Fatalf("%q: %v", got, err)
			}
			if n := float64(time.Since(begun)) / float64(rtt); n != want {
				t.Errorf("%q took %v round trips, want %v", write, n, want)
			}
		}
		trips("", "220 sink ESMTP\r\n", 2)
		trips("NOOP\r\n", "250 2.0.0 Ok\r\n", 1)
		trips("NOOP\r\nNOOP\r\nMAIL\r\n", "250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n", 1)
		trips("QUIT\r\n", "221 2.0.0 Bye\r\n", 1)
		if d := time.Since(begun); d != 5*rtt {
			t.Errorf("all of it took %v", d)
		}
		c.Close()
		close(l.conns)
		time.Sleep(rtt) // until the line has heard of it
	})
}

// pipe is one end of a net.Pipe that keeps the other.
type pipe struct {
	net.Conn
	far net.Conn
}

func newPipe() pipe {
	a, b := net.Pipe()
	return pipe{a, b}
}

type pipeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l *pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
