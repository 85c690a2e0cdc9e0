package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/smtplb/smtplb"
)

const (
	columns = 60 // of time
	maxRows = 20 // of relays: more are grouped
)

// report is what is printed at the end.
type report struct {
	options   *options
	took      time.Duration // fake time
	wall      time.Duration // real time
	accepted  int
	deferred  int
	failed    int
	unknown   int
	failovers int
	// The truth, by what the relays stored.
	lost       int // reported as accepted, and nobody has it
	duplicated int // stored more than once
	untold     int // reported as not accepted, and a relay has it
	unknownHad int // of the unknown ones, those that a relay has
	all        latencies
	perColumn  []latencies
	rows       []row
	total      float64 // of the weights
}

// latencies are how long sends took, sorted.
type latencies []time.Duration

// at returns a percentile, 0 where there are none.
func (l latencies) at(percent float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[min(int(float64(len(l))*percent/100), len(l)-1)]
}

// row is a relay, or several in a row.
type row struct {
	first, last  int
	weight       float64
	messages     int
	faults       uint64
	dials        uint64
	troubled     bool
	perColumn    [columns]int
	least, most  float64 // of the relays' shares, each against its weight's
	openBreakers int
}

func (r *row) name() string {
	if r.first == r.last {
		return relayName(r.first)
	}
	return fmt.Sprintf("%s-%d", relayName(r.first), r.last)
}

func newReport(o *options, record *record, f *fleet, stats smtplb.Stats) *report {
	r := &report{options: o, took: record.ended.Sub(record.began), perColumn: make([]latencies, columns)}
	size := (o.relays + maxRows - 1) / maxRows
	r.rows = make([]row, (o.relays+size-1)/size)
	for i := range o.relays {
		r.total += float64(o.weight(i))
	}
	column := func(at time.Duration) int { return min(int(at*columns/max(r.took, 1)), columns-1) }
	stored := make([]int, o.relays)
	for n := range o.messages {
		copies := record.copies[n].Load()
		c := column(record.start[n])
		if copies > 0 {
			relay := int(record.relay[n].Load())
			stored[relay]++
			r.rows[relay/size].perColumn[c]++
		}
		if copies > 1 {
			r.duplicated++
		}
		switch record.outcome[n] {
		case smtplb.Accepted:
			r.accepted++
			if copies == 0 {
				r.lost++
			}
		case smtplb.Unknown:
			r.unknown++
			if copies > 0 {
				r.unknownHad++
			}
		case smtplb.Deferred, smtplb.Failed:
			if record.outcome[n] == smtplb.Deferred {
				r.deferred++
			} else {
				r.failed++
			}
			if copies > 0 {
				r.untold++
			}
		}
		r.failovers += max(int(record.hops[n])-1, 0)
		r.perColumn[c] = append(r.perColumn[c], record.latency[n])
		r.all = append(r.all, record.latency[n])
	}
	slices.Sort(r.all)
	for _, l := range r.perColumn {
		slices.Sort(l)
	}
	for i, s := range stats.Relays {
		g := &r.rows[i/size]
		if i%size == 0 {
			g.first = i
		}
		g.last = i
		g.weight += float64(o.weight(i))
		g.messages += stored[i]
		g.faults += s.Faults
		g.dials += uint64(f.relays[i].Stats().Connections)
		share := r.share(stored[i], float64(o.weight(i)))
		if g.first == i {
			g.least, g.most = share, share
		}
		g.least, g.most = min(g.least, share), max(g.most, share)
		if s.State != "closed" {
			g.openBreakers++
		}
		for _, t := range o.troubles {
			g.troubled = g.troubled || i >= t.first && i <= t.last
		}
	}
	return r
}

// share is what part of its weight's share something got: 1 is just that.
func (r *report) share(messages int, weight float64) float64 {
	return float64(messages) / max(float64(len(r.all)), 1) * r.total / weight
}

// truthful reports whether what the pool said of the recipients is true.
func (r *report) truthful() bool { return r.lost == 0 && r.duplicated == 0 && r.untold == 0 }

func (r *report) print(w io.Writer) {
	o := r.options
	fmt.Fprintf(w, "%d relays of %d connections, which take %v (σ %v) for a message: about %.0f messages/s at the most.\n", o.relays, o.conns, o.service, o.sigma, o.capacity())
	load := fmt.Sprintf("%.0f messages/s", o.rate)
	if o.callers > 0 {
		load = fmt.Sprintf("%d callers", o.callers)
	}
	fmt.Fprintf(w, "%d messages of %d bytes, %s, balancer %s: %v of fake time.\n\n", o.messages, o.size, load, o.balancer, r.took.Round(time.Millisecond))
	r.table(w)
	r.plotShares(w)
	r.plotLatency(w)
	fmt.Fprintf(w, "\nlatency of a send: p50 %s · p90 %s · p99 %s · p99.9 %s · max %s\n",
		short(r.all.at(50)), short(r.all.at(90)), short(r.all.at(99)), short(r.all.at(99.9)), short(r.all.at(100)))
	fmt.Fprintf(w, "accepted %d · deferred %d · failed %d · unknown %d (relays have %d of them) · failovers %d\n",
		r.accepted, r.deferred, r.failed, r.unknown, r.unknownHad, r.failovers)
	fmt.Fprintf(w, "lost %d · duplicated %d · told otherwise than it was %d\n", r.lost, r.duplicated, r.untold)
	fmt.Fprintf(w, "%.1f s, %.1f µs for a message\n", r.wall.Seconds(), float64(r.wall.Microseconds())/float64(o.messages))
}

// table tells what each relay got.
func (r *report) table(w io.Writer) {
	grouped := r.rows[0].first != r.rows[0].last
	fmt.Fprintf(w, "%-16s %8s %8s %9s %9s %8s", "", "weight", "share", "messages", "connected", "faults")
	if grouped {
		fmt.Fprintf(w, "  %s", "least and most of a relay, against its weight")
	}
	fmt.Fprintln(w)
	for i := range r.rows {
		g := &r.rows[i]
		mark := ""
		if g.troubled {
			mark = " *"
		}
		fmt.Fprintf(w, "%-16s %6.2f %% %6.2f %% %9d %9d %8d", g.name()+mark, 100*g.weight/r.total, 100*r.share(g.messages, r.total), g.messages, g.dials, g.faults)
		if grouped {
			fmt.Fprintf(w, "  %.2f … %.2f", g.least, g.most)
		}
		if g.openBreakers > 0 {
			fmt.Fprintf(w, "  %d not in use at the end", g.openBreakers)
		}
		fmt.Fprintln(w)
	}
	if len(r.options.troubles) > 0 {
		fmt.Fprintln(w, "* with troubles")
	}
}

// short rounds a duration to three digits or so.
func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		d = d.Round(100 * time.Millisecond)
	case d >= time.Second:
		d = d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		d = d.Round(time.Millisecond)
	}
	return d.String()
}
