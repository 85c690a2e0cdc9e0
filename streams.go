package smtplb

import (
	"fmt"
	"strings"
	"time"
)

// Stream is a class of traffic, that of the envelopes whose Stream is its Name. It says who goes first where sends wait for a free connection.
//
// They wait in one queue, in the order in which they came. Lag puts a class back by so much time, as if its messages had come later: others go first unless they came later by more than
// that. So bulk doesn't starve, however much else there is; but for a Bulk class in a DeliverAll that waits for Limits: it comes after all others there, however long it has waited, and has what they leave. And a Bulk class gets no connection that Conns.Reserved keeps back, so that the others find a free one.
type Stream struct {
	// Name is the Envelope.Stream of its messages: "" is the class of those that have none.
	Name string
	// Lag is how much later than it came a message counts as having come. Default: 0. Negative: others, even earlier ones, are gone before.
	Lag time.Duration
	// Bulk: no connection slots are taken that Conns.Reserved keeps back.
	Bulk bool
	// Limits bound the class. Default: none of its own.
	Limits Limits
}

// maxLag bounds Stream.Lag: nobody's mail waits for a day.
const maxLag = 24 * time.Hour

// defaultStreams are those of a Config that has none.
var defaultStreams = []Stream{{Name: "bulk", Lag: 30 * time.Second, Bulk: true}, {Name: "marketing", Lag: 30 * time.Second, Bulk: true}}

// streams are a configuration's classes by name. Whoever is not among them has no lag.
type streams map[string]Stream

func (c *Config) streams() streams {
	list := c.Streams
	if list == nil {
		list = defaultStreams
	}
	m := make(streams, len(list))
	for _, s := range list {
		m[s.Name] = s
	}
	return m
}

func (c *Config) validateStreams(f *faults) {
	seen := make(map[string]int, len(c.Streams))
	for i, s := range c.Streams {
		path := fmt.Sprintf("Streams[%d]", i)
		if len(s.Name) > maxStream || strings.ContainsFunc(s.Name, isControl) {
			f.add(path+".Name", "control characters, or more than %d bytes", maxStream)
		}
		if first, ok := seen[s.Name]; ok {
			f.add(path+".Name", "%q is the name of Streams[%d] too", s.Name, first)
		} else {
			seen[s.Name] = i
		}
		if s.Lag > maxLag || s.Lag < -maxLag {
			f.add(path+".Lag", "is %v; at most %v either way", s.Lag, maxLag)
		}
		s.Limits.validate(path+".Limits", scopeStream, f)
	}
}
