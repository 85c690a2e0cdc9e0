package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// shades are shares over time: the first is nothing at all, the fifth what the weight says, the last twice that and more.
var shades = []rune(" ▁▂▃▄▅▆▇█")

// plotShares draws a line for each relay or group: how its share of the messages, by the moment at which they were sent, compares with its
// weight's.
func (r *report) plotShares(w io.Writer) {
	var all [columns]int
	for i := range r.rows {
		for c, n := range r.rows[i].perColumn {
			all[c] += n
		}
	}
	fmt.Fprintln(w, "\nshares over time: ▄ is what the weight says, █ twice that or more, ▁ little, blank nothing")
	for i := range r.rows {
		g := &r.rows[i]
		var line strings.Builder
		for c, n := range g.perColumn {
			shade := 0
			if n > 0 {
				against := float64(n) / float64(all[c]) * r.total / g.weight
				shade = min(max(int(math.Round(4*against)), 1), len(shades)-1)
			}
			line.WriteRune(shades[shade])
		}
		fmt.Fprintf(w, "%-16s %s\n", g.name(), line.String())
	}
	r.axis(w)
}

// plotLatency draws p50 (o) and p99 (*) of the sends that began in each column, on a logarithmic scale.
func (r *report) plotLatency(w io.Writer) {
	const height = 12
	low, high := math.Inf(1), 0.0
	for _, l := range r.perColumn {
		if len(l) > 0 {
			low, high = min(low, l.at(50).Seconds()), max(high, l.at(99).Seconds())
		}
	}
	low = max(min(low, high), 1e-4) // sends that take no time have no logarithm
	high = max(high, 2*low)
	line := func(d time.Duration) int { // 0 is the lowest
		x := math.Log(max(d.Seconds(), low)/low) / math.Log(high/low)
		return min(int(math.Round(x*(height-1))), height-1)
	}
	var grid [height][columns]byte
	for y := range grid {
		for c := range grid[y] {
			grid[y][c] = ' '
		}
	}
	for c, l := range r.perColumn {
		if len(l) > 0 {
			grid[line(l.at(99))][c] = '*'
			grid[line(l.at(50))][c] = 'o' // over a p99 that is the same
		}
	}
	fmt.Fprintln(w, "\nlatency of a send over time: o half of them are faster, * 99 of 100 are")
	for y := height - 1; y >= 0; y-- {
		label := ""
		if y%3 == 2 || y == 0 {
			label = short(time.Duration(low * math.Pow(high/low, float64(y)/(height-1)) * float64(time.Second)))
		}
		fmt.Fprintf(w, "%16s %s\n", label, strings.TrimRight(string(grid[y][:]), " "))
	}
	r.axis(w)
}

// axis is the time under a plot.
func (r *report) axis(w io.Writer) {
	end := r.took.Round(time.Second).String()
	fmt.Fprintf(w, "%16s 0%*s\n", "", columns-1, end)
}
