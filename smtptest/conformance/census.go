package conformance

import (
	"bytes"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"
)

// label is the profiler label by which the goroutines of a sender are known: those it
// starts inherit it.
const label = "smtptest/conformance"

// censusPause lies between two counts.
const censusPause = 200 * time.Millisecond

// census counts the goroutines of senders. To look at all goroutines of a process is
// dear, so all who ask within a pause share one count.
type census struct {
	mu     sync.Mutex // protects the following fields
	asking []chan map[string]int
}

var goroutines census

// count returns how many goroutines the sender of a trial has, after a pause.
func (c *census) count(id string) int {
	ch := make(chan map[string]int, 1)
	c.mu.Lock()
	c.asking = append(c.asking, ch)
	first := len(c.asking) == 1
	c.mu.Unlock()
	if first {
		go c.take()
	}
	return (<-ch)[id]
}

func (c *census) take() {
	<-time.After(censusPause)
	c.mu.Lock()
	asking := c.asking
	c.asking = nil
	c.mu.Unlock()
	counts := labelled()
	for _, ch := range asking {
		ch <- counts
	}
}

// labelled returns the numbers of goroutines by the value of label.
func labelled() map[string]int {
	counts := make(map[string]int)
	var b bytes.Buffer
	if pprof.Lookup("goroutine").WriteTo(&b, 1) != nil {
		return counts // a Buffer takes everything
	}
	// Each block begins with the number of goroutines that it stands for, and has a line
	// "# labels: {…}" where there are any.
	for block := range strings.SplitSeq(b.String(), "\n\n") {
		_, id, found := strings.Cut(block, strconv.Quote(label)+":\"")
		if !found {
			continue
		}
		id, _, _ = strings.Cut(id, "\"")
		if strings.HasPrefix(block, "goroutine profile:") { // the first one has a heading
			_, block, _ = strings.Cut(block, "\n")
		}
		number, _, _ := strings.Cut(block, " ")
		n, _ := strconv.Atoi(number)
		counts[id] += max(n, 1)
	}
	return counts
}
