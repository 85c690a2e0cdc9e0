package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// progress shows how far the demo is: as a bar on a terminal, as a line for each tenth elsewhere. It is used by one goroutine.
type progress struct {
	w        io.Writer
	bar      bool
	total    int
	done     int
	drawn    time.Time
	drawnLen int // characters of the bar that stand on the terminal
}

// newProgress writes to w, usually os.Stderr, so that what the program prints can be piped.
func newProgress(w io.Writer, total int) *progress {
	return &progress{w: w, bar: isTerminal(w), total: total}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// step counts a message.
func (p *progress) step() {
	p.done++
	switch now := time.Now(); {
	case p.bar && now.Sub(p.drawn) > 40*time.Millisecond:
		p.drawn = now
		p.draw()
	case !p.bar && p.done*10/p.total > (p.done-1)*10/p.total:
		fmt.Fprintf(p.w, "%3d %%  %d of %d messages\n", p.done*100/p.total, p.done, p.total)
	}
}

// say tells an event, on a line of its own.
func (p *progress) say(event string) {
	p.clear()
	fmt.Fprintf(p.w, "%3d %%  %s\n", p.done*100/p.total, event)
	if p.bar {
		p.draw()
	}
}

// finish takes the bar away.
func (p *progress) finish() { p.clear() }

func (p *progress) draw() {
	const width = 40
	full := p.done * width / p.total
	line := fmt.Sprintf("%3d %%  %s%s  %d of %d messages", p.done*100/p.total, strings.Repeat("█", full), strings.Repeat("░", width-full), p.done, p.total)
	fmt.Fprint(p.w, "\r", line)
	p.drawnLen = len([]rune(line))
}

func (p *progress) clear() {
	if p.drawnLen > 0 {
		fmt.Fprint(p.w, "\r", strings.Repeat(" ", p.drawnLen), "\r")
		p.drawnLen = 0
	}
}
