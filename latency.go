package smtplb

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// This file measures how long the stages of attempts take: in histograms of a fixed size, without a lock.

// LatencyStats is how long one stage of the attempts took.
type LatencyStats struct {
	Count         uint64        // attempts in which the stage took any time: a reused connection isn't dialled
	P50, P99, Max time.Duration // the percentiles are exact to an eighth
}

// StageLatency is the latency of each stage of Timings.
type StageLatency struct {
	Wait, Dial, TLS, Hello, Auth, Envelope, Body, Final LatencyStats
}

const (
	latencyUnit    = 8 * time.Microsecond
	latencyBuckets = 116 // up to 71 minutes; what takes longer is in the last
)

// histogram has four buckets for each doubling.
type histogram struct {
	buckets [latencyBuckets]atomic.Uint64
	max     atomic.Int64
}

// add counts a duration; 0 stands for a stage that did not happen.
func (h *histogram) add(d time.Duration) {
	if d <= 0 {
		return
	}
	for m := h.max.Load(); int64(d) > m && !h.max.CompareAndSwap(m, int64(d)); { // first: read looks no further than max
		m = h.max.Load()
	}
	h.buckets[bucketOf(d)].Add(1)
}

func bucketOf(d time.Duration) int {
	u := uint64(d / latencyUnit)
	if u < 4 {
		return int(u)
	}
	e := bits.Len64(u)
	return min((e-2)*4+int(u>>(e-3)&3), latencyBuckets-1)
}

// middleOf returns the duration in the middle of a bucket.
func middleOf(i int) time.Duration {
	if i < 4 {
		return time.Duration(i)*latencyUnit + latencyUnit/2
	}
	width := latencyUnit << (i/4 - 1)
	return time.Duration(4+i%4)*width + width/2
}

// read returns the figures so far. What is added meanwhile may be in it or not.
func (h *histogram) read() (l LatencyStats) {
	l.Max = time.Duration(h.max.Load())
	if l.Max == 0 {
		return LatencyStats{}
	}
	var buckets [latencyBuckets]uint64
	n := buckets[:bucketOf(l.Max)+1]
	for i := range n {
		n[i] = h.buckets[i].Load()
		l.Count += n[i]
	}
	half, most := (l.Count+1)/2, l.Count-l.Count/100
	var sum uint64
	for i, c := range n {
		if sum += c; c == 0 {
			continue
		}
		if l.P50 == 0 && sum >= half {
			l.P50 = min(middleOf(i), l.Max)
		}
		if sum >= most {
			l.P99 = min(middleOf(i), l.Max)
			break
		}
	}
	return l
}

// latencies are a relay's histograms. They are made with its first attempt.
type latencies struct {
	wait, dial, tls, hello, auth, envelope, body, final histogram
}

// observe counts an attempt's timings.
func (r *standing) observe(t *Timings) {
	l := r.latencies.Load()
	if l == nil {
		r.latencies.CompareAndSwap(nil, new(latencies))
		l = r.latencies.Load()
	}
	l.wait.add(t.Wait)
	l.dial.add(t.Dial)
	l.tls.add(t.TLS)
	l.hello.add(t.Hello)
	l.auth.add(t.Auth)
	l.envelope.add(t.Envelope)
	l.body.add(t.Body)
	l.final.add(t.Final)
}

func (r *standing) stageLatency() StageLatency {
	l := r.latencies.Load()
	if l == nil {
		return StageLatency{}
	}
	return StageLatency{
		Wait: l.wait.read(), Dial: l.dial.read(), TLS: l.tls.read(), Hello: l.hello.read(), Auth: l.auth.read(),
		Envelope: l.envelope.read(), Body: l.body.read(), Final: l.final.read(),
	}
}
