package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// This file is a line with a round-trip time. Each segment that is read is passed on half a round trip later, in order, however many are under way: bandwidth
// isn't limited, and a segment doesn't wait for the one before it to arrive.

// segment is what one Read returned.
type segment struct {
	data []byte
	due  time.Time
}

// window is how many segments may be under way in a direction: more than any work here has.
const window = 1 << 14

// relayDelayed copies src to dst, each segment delay after it was read, the end of the stream included.
func relayDelayed(dst io.Writer, src io.Reader, delay time.Duration) error {
	line := make(chan segment, window)
	failed := make(chan struct{})
	var readErr error
	go func() {
		defer close(line)
		buf := make([]byte, smallBuffer)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				s := segment{append([]byte(nil), buf[:n]...), time.Now().Add(delay)}
				select {
				case line <- s:
				case <-failed:
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					readErr = err
				}
				select {
				case line <- segment{nil, time.Now().Add(delay)}:
				case <-failed:
				}
				return
			}
		}
	}()
	for s := range line {
		time.Sleep(time.Until(s.due))
		if s.data == nil {
			continue // the end; the channel is closed behind it
		}
		if _, err := dst.Write(s.data); err != nil {
			close(failed)
			return err
		}
	}
	return readErr
}

// serveDelayed accepts connections on l until it is closed, and connects each to what dial returns by a line with the round-trip time rtt. A TCP handshake
// over such a line takes one and a half round trips until the server hears of it; the kernel has done it at once, so the server is connected to that much later.
func serveDelayed(l net.Listener, dial func() (net.Conn, error), rtt time.Duration) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			time.Sleep(rtt + rtt/2)
			up, err := dial()
			if err != nil {
				return
			}
			defer up.Close()
			var both sync.WaitGroup
			for _, d := range [][2]net.Conn{{up, c}, {c, up}} {
				both.Go(func() {
					_ = relayDelayed(d[0], d[1], rtt/2)
					if half, ok := d[0].(interface{ CloseWrite() error }); ok {
						_ = half.CloseWrite()
					} else {
						d[0].Close()
					}
				})
			}
			both.Wait()
		}()
	}
}
