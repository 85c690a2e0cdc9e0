package smtplb_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/smtplb/smtplb"
)

// sink is a relay that accepts and forgets, as cheaply as can be: what is measured is the client.
func sink(tb testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go swallow(c)
		}
	}()
	return l.Addr().String()
}

func swallow(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	w.WriteString("220 sink ESMTP\r\n")
	body := false
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		if body {
			if _, err := r.Peek(5); err != nil { // no body is shorter than its terminator
				return
			}
			b, _ := r.Peek(r.Buffered())
			end := bytes.Index(b, []byte("\r\n.\r\n"))
			if end < 0 {
				r.Discard(len(b) - 4) // the terminator may have come in part
				continue
			}
			r.Discard(end + 5)
			body = false
			w.WriteString("250 2.0.0 Ok: queued as 4Zk3vB0Xyz\r\n")
			continue
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(line, []byte("EHLO")):
			w.WriteString("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			body = true
			w.WriteString("354 End data with <CR><LF>.<CR><LF>\r\n")
		case bytes.HasPrefix(line, []byte("MAIL")):
			w.WriteString("250 2.1.0 Ok\r\n")
		case bytes.HasPrefix(line, []byte("RCPT")):
			w.WriteString("250 2.1.5 Ok\r\n")
		case bytes.HasPrefix(line, []byte("QUIT")):
			w.WriteString("221 2.0.0 Bye\r\n")
			w.Flush()
			return
		default:
			w.WriteString("250 2.0.0 Ok\r\n")
		}
	}
}

// body2k is a message of 2 KB in canonical form.
var body2k = append([]byte("From: a@example.com\r\nTo: x@example.com\r\nSubject: two kilobytes\r\n\r\n"),
	bytes.Repeat([]byte("0123456789 0123456789 0123456789 0123456789 0123456789 012345678\r\n"), 29)...)

func benchPool(tb testing.TB, addr string, conns int) *smtplb.Pool {
	p, err := smtplb.New(smtplb.Config{LocalName: "localhost", Relays: []smtplb.Relay{{
		Addr: addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: conns, MaxMessages: -1},
	}}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	return p
}

func benchEnvelope() *smtplb.Envelope {
	return &smtplb.Envelope{From: "a@example.com", To: []string{"x@example.com"}, Body: smtplb.Bytes(body2k)}
}

// BenchmarkDeliver sends 2 KB messages one after the other.
func BenchmarkDeliver(b *testing.B) {
	p := benchPool(b, sink(b), 1)
	e := benchEnvelope()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Deliver(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDeliverRiding sends 2 KB messages from 64 goroutines over 8 connections to a relay in another process.
func BenchmarkDeliverRiding(b *testing.B) {
	p := benchPool(b, sinkProcess(b), 8)
	e := benchEnvelope()
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := p.Deliver(b.Context(), e); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// TestDeliverAllocations bounds what a Deliver of prebuilt bytes allocates, with a context that can end.
func TestDeliverAllocations(t *testing.T) {
	p := benchPool(t, sink(t), 1)
	e := benchEnvelope()
	var failed atomic.Bool
	n := testing.AllocsPerRun(200, func() {
		if _, err := p.Deliver(t.Context(), e); err != nil {
			failed.Store(true)
		}
	})
	if failed.Load() {
		t.Fatal("a send failed")
	}
	t.Logf("%.1f allocations", n)
	if n > 5 && !raceEnabled {
		t.Errorf("a Deliver allocates %.1f times, want 5 at the most", n)
	}
}

// TestIdleConnectionMemory bounds the heap of an idle plain connection. The sink runs in a process of its own.
func TestIdleConnectionMemory(t *testing.T) {
	const most = 1536
	addr, least := sinkProcess(t), math.Inf(1)
	for range 3 { // what the runtime takes for itself where the machine is busy counts too, once
		if least = min(least, idleMemory(t, addr)); least <= most || raceEnabled {
			return
		}
	}
	t.Errorf("an idle connection holds %.0f bytes of heap, want %d at the most", least, most)
}

// idleMemory is the heap that each of some idle connections holds.
func idleMemory(t *testing.T, addr string) float64 {
	const conns = 300
	var started sync.WaitGroup // all connections must be in use at once
	started.Add(conns)
	first := true
	p, err := smtplb.New(smtplb.Config{
		LocalName: "localhost",
		Relays:    []smtplb.Relay{{Addr: addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: conns}}},
		Health:    smtplb.Health{SlowStart: -1},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if !first {
				started.Done()
				started.Wait()
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var wg sync.WaitGroup
	everybody := make(chan struct{})
	for range conns { // the runtime keeps what as many goroutines needed, and the context's map its size
		wg.Go(func() {
			stop := context.AfterFunc(t.Context(), func() {})
			<-everybody
			stop()
		})
	}
	close(everybody)
	wg.Wait()
	if _, err := p.Deliver(t.Context(), benchEnvelope()); err != nil { // what the pool has for a relay, whose connections are counted
		t.Fatal(err)
	}
	for _, s := range []smtplb.AdminState{smtplb.AdminDrain, smtplb.AdminReady} { // its connection goes
		if err := p.SetAdmin(addr, s); err != nil {
			t.Fatal(err)
		}
	}
	first = false
	before := heap()
	for range conns {
		wg.Go(func() {
			if _, err := p.Deliver(t.Context(), benchEnvelope()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if idle := p.Stats().Relays[0].Idle; idle != conns {
		t.Fatalf("%d connections are idle", idle)
	}
	per := (float64(heap()) - float64(before)) / conns
	t.Logf("%.0f bytes of heap for each idle connection", per)
	return per
}

// TestCancelledWaitersLeaveNoMemory: ten thousand sends wait for the one connection, and are cancelled.
func TestCancelledWaitersLeaveNoMemory(t *testing.T) {
	const waiters = 10000
	release, inside := make(chan struct{}), make(chan struct{})
	p, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{{Addr: sink(t), TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: 1}}},
		Hooks: smtplb.Hooks{AttemptStart: func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
			inside <- struct{}{}
			<-release
			return nil
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	first := make(chan error)
	go func() {
		_, err := p.Deliver(t.Context(), benchEnvelope())
		first <- err
	}()
	<-inside
	crowd := func() {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range waiters {
			wg.Go(func() {
				if _, err := p.Deliver(ctx, benchEnvelope()); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		for p.Stats().Waiting < waiters {
			runtime.Gosched()
		}
		cancel()
		wg.Wait()
	}
	crowd() // what is made once (goroutine stacks, map buckets) is not counted
	goroutines, before := runtime.NumGoroutine(), heap()
	crowd()
	if grown := int64(heap()) - int64(before); grown > 100<<10 && !raceEnabled {
		t.Errorf("%d cancelled sends left %d bytes behind", waiters, grown)
	}
	for range 1000 { // goroutines that were told to end have a moment
		if runtime.NumGoroutine() <= goroutines {
			break
		}
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	if s := p.Stats(); s.Waiting != 0 || s.InFlight != 1 || s.Relays[0].InFlight != 1 {
		t.Errorf("%+v", s)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// heap is what is in use after everything that can be freed was.
func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // what a sync.Pool holds goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// sinkProcess runs this test binary as a sink.
func sinkProcess(t testing.TB) string {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestSinkProcess$")
	cmd.Env = append(os.Environ(), "SMTPLB_TEST_SINK=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

// TestSinkProcess is the other process of sinkProcess; run by itself it proves that the sink takes a message.
func TestSinkProcess(t *testing.T) {
	addr := sink(t)
	if os.Getenv("SMTPLB_TEST_SINK") == "" {
		if _, err := benchPool(t, addr, 1).Deliver(t.Context(), benchEnvelope()); err != nil {
			t.Error(err)
		}
		return
	}
	fmt.Println(addr)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends
}
