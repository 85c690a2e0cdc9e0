package discover_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/discover"
)

const (
	submissions = "_submissions._tcp.example.com."
	submission  = "_submission._tcp.example.com."
)

func record(target string, port, priority, weight uint16) *net.SRV {
	return &net.SRV{Target: target, Port: port, Priority: priority, Weight: weight}
}

func lookup(t *testing.T, r discover.Resolver) ([]discover.Target, error) {
	t.Helper()
	return discover.LookupSubmission(t.Context(), r, "example.com")
}

func TestTargets(t *testing.T) {
	for _, test := range []struct {
		name string
		srv  map[string][]*net.SRV
		want []discover.Target
		asks int
	}{
		{"implicit TLS alone is used where there are both, whatever the priorities", map[string][]*net.SRV{
			submissions: {record("b.example.com.", 465, 20, 0), record("a.example.com.", 465, 10, 5)},
			submission:  {record("c.example.com.", 587, 0, 0)},
		}, []discover.Target{{"a.example.com", 465, 10, 5, true}, {"b.example.com", 465, 20, 0, true}}, 1},
		{"STARTTLS where there is no other", map[string][]*net.SRV{
			submission: {record("c.example.com.", 587, 0, 1)},
		}, []discover.Target{{"c.example.com", 587, 0, 1, false}}, 2},
		{"STARTTLS where implicit TLS is decidedly not offered", map[string][]*net.SRV{
			submissions: {record(".", 0, 0, 0)},
			submission:  {record("c.example.com.", 587, 0, 1)},
		}, []discover.Target{{"c.example.com", 587, 0, 1, false}}, 2},
		{"STARTTLS where the other answer is empty", map[string][]*net.SRV{
			submissions: {},
			submission:  {record("c.example.com.", 587, 0, 1)},
		}, []discover.Target{{"c.example.com", 587, 0, 1, false}}, 2},
		{"a dot beside others means nothing", map[string][]*net.SRV{
			submissions: {record(".", 0, 0, 0), record("a.example.com.", 465, 0, 1)},
		}, []discover.Target{{"a.example.com", 465, 0, 1, true}}, 1},
		{"sorted, in lower case, without the final dot", map[string][]*net.SRV{
			submissions: {
				record("Z.Example.COM", 465, 1, 1), record("b.example.com.", 465, 0, 3), record("a.example.com.", 466, 0, 3), record("a.example.com.", 465, 0, 3), record("c.example.com.", 465, 0, 7),
			},
		}, []discover.Target{
			{"c.example.com", 465, 0, 7, true}, {"a.example.com", 465, 0, 3, true}, {"a.example.com", 466, 0, 3, true}, {"b.example.com", 465, 0, 3, true}, {"z.example.com", 465, 1, 1, true},
		}, 1},
		{"duplicates: of one priority the weights add up, else the better priority counts", map[string][]*net.SRV{
			submissions: {
				record("a.example.com.", 465, 5, 3), record("A.example.com", 465, 5, 4), record("a.example.com.", 465, 9, 100),
				record("b.example.com.", 465, 9, 1), record("b.example.com.", 465, 5, 2),
			},
		}, []discover.Target{{"a.example.com", 465, 5, 7, true}, {"b.example.com", 465, 5, 2, true}}, 1},
		{"what is no host name, or no port, is left out", map[string][]*net.SRV{
			submissions: {
				nil, record("", 465, 0, 0), record("..", 465, 0, 0), record("192.0.2.1", 465, 0, 0), record("192.0.2.1.", 465, 0, 0), record("a..b.", 465, 0, 0), record("a b.test.", 465, 0, 0), record(".a.test.", 465, 0, 0),
				record("-a.test.", 465, 0, 0), record("a-.test.", 465, 0, 0), record("a.test-", 465, 0, 0), record("a.7.", 465, 0, 0), record("a\r\nb.test.", 465, 0, 0), record("ü.test.", 465, 0, 0),
				record("a.test/b", 465, 0, 0), record("user@a.test", 465, 0, 0), record("a.test:25", 465, 0, 0), record("::1", 465, 0, 0), record("zero.test.", 0, 0, 0),
				record(strings.Repeat("a", 64)+".test.", 465, 0, 0), record(strings.Repeat("a.", 127)+"test.", 465, 0, 0),
				record("_relay-1.3com.xn--p1ai.", 465, 0, 0), record(strings.Repeat("a", 63)+".test.", 465, 0, 0),
			},
		}, []discover.Target{{"_relay-1.3com.xn--p1ai", 465, 0, 0, true}, {strings.Repeat("a", 63) + ".test", 465, 0, 0, true}}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &names{srv: test.srv}
			got, err := lookup(t, r)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Error(d)
			}
			if want := []string{"srv " + submissions, "srv " + submission}[:test.asks]; !slices.Equal(r.asked, want) {
				t.Errorf("asked %v, want %v", r.asked, want)
			}
		})
	}
}

func TestTargetsAreBounded(t *testing.T) {
	var many []*net.SRV
	for i := range 1000 {
		many = append(many, record(fmt.Sprintf("h%03d.test.", i), 465, uint16(1000-i), 0))
	}
	got, err := lookup(t, &names{srv: map[string][]*net.SRV{submissions: many}})
	if err != nil || len(got) != 64 || got[0].Host != "h999.test" || got[63].Host != "h936.test" {
		t.Errorf("%d targets: %v %v", len(got), got, err)
	}
}

// Three things may be meant by no targets, and a missing answer is never taken for one of the other two.
func TestNoTargets(t *testing.T) {
	dot, broken := []*net.SRV{record(".", 0, 0, 0)}, &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	one := []*net.SRV{record("a.test.", 465, 0, 0)}
	for _, test := range []struct {
		name string
		srv  map[string][]*net.SRV
		errs map[string]error
		want error
		asks int
	}{
		{"neither exists", nil, nil, discover.ErrNoRecords, 2},
		{"both are empty", map[string][]*net.SRV{submissions: {}, submission: {}}, nil, discover.ErrNoRecords, 2},
		{"both dots", map[string][]*net.SRV{submissions: dot, submission: dot}, nil, discover.ErrNotOffered, 2},
		{"dot and silence", map[string][]*net.SRV{submissions: dot}, nil, discover.ErrNotOffered, 2},
		{"silence and dot", map[string][]*net.SRV{submission: dot}, nil, discover.ErrNotOffered, 2},
		{"submissions fails: nothing is said about the other", map[string][]*net.SRV{submission: one}, map[string]error{submissions: broken}, discover.ErrUnavailable, 1},
		{"submission fails", nil, map[string]error{submission: broken}, discover.ErrUnavailable, 2},
		{"dot, and submission fails", map[string][]*net.SRV{submissions: dot}, map[string]error{submission: broken}, discover.ErrUnavailable, 2},
		{"a timeout", nil, map[string]error{submissions: &net.DNSError{Err: "i/o timeout", IsTimeout: true, IsTemporary: true}}, discover.ErrUnavailable, 1},
		{"some other error", nil, map[string]error{submissions: errors.New("no such luck")}, discover.ErrUnavailable, 1},
		{"nothing in the answer is valid", map[string][]*net.SRV{submissions: {record("192.0.2.1", 465, 0, 0)}, submission: one}, nil, discover.ErrUnavailable, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &names{srv: test.srv, errs: test.errs}
			got, err := lookup(t, r)
			if got != nil || !errors.Is(err, test.want) {
				t.Errorf("%v, %v", got, err)
			}
			for _, other := range []error{discover.ErrNoRecords, discover.ErrNotOffered, discover.ErrUnavailable} {
				if other != test.want && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
			var dns *net.DNSError
			if test.want != discover.ErrNotOffered && !errors.As(err, &dns) {
				t.Errorf("no *net.DNSError in %v", err)
			}
			if len(r.asked) != test.asks {
				t.Errorf("asked %v", r.asked)
			}
		})
	}
	// net.Resolver drops what it can't read and says so; the rest counts.
	if got, err := lookup(t, &names{srv: map[string][]*net.SRV{submissions: one}, errs: map[string]error{submissions: &net.DNSError{Err: "malformed records"}}}); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	gone := &net.DNSError{Err: "no such host", IsNotFound: true}
	if _, err := discover.LookupSubmission(ctx, &names{errs: map[string]error{submissions: gone}}, "example.com."); !errors.Is(err, discover.ErrUnavailable) {
		t.Errorf("an answer behind the end of the context: %v", err)
	}
}

func TestTiersAndWeights(t *testing.T) {
	for _, test := range []struct {
		records        []*net.SRV // in the order of targets
		tiers, weights []int
	}{
		{[]*net.SRV{record("a.test", 1, 10, 0), record("b.test", 1, 10, 0), record("c.test", 1, 20, 0), record("d.test", 1, 65535, 9)}, []int{0, 0, 1, 2}, []int{1, 1, 1, 9}},
		{[]*net.SRV{record("a.test", 1, 0, 2), record("b.test", 1, 0, 1), record("c.test", 1, 0, 0)}, []int{0, 0, 0}, []int{200, 100, 1}},
		{[]*net.SRV{record("a.test", 1, 0, 65535), record("b.test", 1, 0, 1)}, []int{0, 0}, []int{65535, 1}},
		{[]*net.SRV{record("a.test", 1, 0, 65535), record("b.test", 1, 0, 6553), record("c.test", 1, 0, 0)}, []int{0, 0, 0}, []int{1000000, 99992, 1}},
	} {
		targets, err := lookup(t, &names{srv: map[string][]*net.SRV{submissions: test.records}})
		if err != nil {
			t.Fatal(err)
		}
		if got := discover.Tiers(targets); !slices.Equal(got, test.tiers) {
			t.Errorf("%v: tiers %v, want %v", targets, got, test.tiers)
		}
		if got := discover.Weights(targets); !slices.Equal(got, test.weights) {
			t.Errorf("%v: weights %v, want %v", targets, got, test.weights)
		}
	}
	var huge []*net.SRV // duplicates add up to more than a relay may weigh
	for range 100 {
		huge = append(huge, record("a.test.", 465, 0, 65535))
	}
	targets, err := lookup(t, &names{srv: map[string][]*net.SRV{submissions: append(huge, record("b.test.", 465, 0, 65535))}})
	if got := discover.Weights(targets); err != nil || !slices.Equal(got, []int{1000000, 10000}) {
		t.Errorf("%v: %v %v", targets, got, err)
	}
	if len(discover.Tiers(nil)) != 0 || len(discover.Weights(nil)) != 0 {
		t.Error("nothing for nothing")
	}
}

func TestRefresher(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := []discover.Target{{Host: "a.test", Port: 465}}, []discover.Target{{Host: "b.test", Port: 465}}
	r := &discover.Refresher{Rand: func() float64 { return 0.5 }}
	if !r.Due(now) {
		t.Error("a new one is not due")
	}
	for i, step := range []struct {
		targets []discover.Target
		err     error
		changed bool
		holds   []discover.Target
		wait    time.Duration
	}{
		{nil, discover.ErrUnavailable, false, nil, 5 * time.Second},
		{a, nil, true, a, time.Minute},
		{a, nil, false, a, time.Minute},
		{b, discover.ErrUnavailable, false, a, 5 * time.Second},
		{nil, discover.ErrUnavailable, false, a, 10 * time.Second},
		{nil, discover.ErrUnavailable, false, a, 20 * time.Second},
		{nil, discover.ErrUnavailable, false, a, 40 * time.Second},
		{nil, discover.ErrUnavailable, false, a, time.Minute},
		{nil, discover.ErrUnavailable, false, a, time.Minute},
		{b, nil, true, b, time.Minute},
		{nil, discover.ErrNoRecords, false, b, 5 * time.Second},
		{nil, discover.ErrNoRecords, false, b, 10 * time.Second},
		{nil, discover.ErrUnavailable, false, b, 20 * time.Second}, // not in a row
		{nil, discover.ErrNoRecords, false, b, 40 * time.Second},
		{nil, discover.ErrNoRecords, false, b, time.Minute},
		{nil, discover.ErrNoRecords, true, nil, time.Minute},
		{nil, discover.ErrNoRecords, false, nil, time.Minute},
		{a, nil, true, a, time.Minute},
		{nil, discover.ErrNotOffered, true, nil, time.Minute},
		{nil, discover.ErrNotOffered, false, nil, time.Minute},
		{nil, fmt.Errorf("wrapped: %w", discover.ErrUnavailable), false, nil, 5 * time.Second},
	} {
		if got := r.Note(now, step.targets, step.err); got != step.changed {
			t.Errorf("step %d: changed %v", i, got)
		}
		holds, err := r.Targets()
		if !slices.Equal(holds, step.holds) || err != step.err {
			t.Errorf("step %d: holds %v, %v", i, holds, err)
		}
		if got := r.Next().Sub(now); got != step.wait {
			t.Errorf("step %d: the next is in %v, want %v", i, got, step.wait)
		}
		if now = r.Next(); r.Due(now.Add(-1)) || !r.Due(now) {
			t.Errorf("step %d: due at the wrong time", i)
		}
	}
	for range 1000 { // an outage of hours
		r.Note(now, nil, discover.ErrUnavailable)
	}
	if got := r.Next().Sub(now); got != time.Minute {
		t.Errorf("after a thousand failures the next is in %v", got)
	}
}

func TestRefresherJitter(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var r discover.Refresher
	low, high := time.Hour, time.Duration(0)
	for range 2000 {
		r.Note(now, nil, nil)
		d := r.Next().Sub(now)
		low, high = min(low, d), max(high, d)
	}
	if low < 48*time.Second || low > 50*time.Second || high > 72*time.Second || high < 70*time.Second {
		t.Errorf("a minute, more or less: from %v to %v", low, high)
	}
}

// What the Refresher holds is its own.
func TestRefresherKeepsACopy(t *testing.T) {
	var r discover.Refresher
	mine := []discover.Target{{Host: "a.test"}}
	r.Note(time.Now(), mine, nil)
	mine[0].Host = "changed.test"
	if got, _ := r.Targets(); got[0].Host != "a.test" {
		t.Errorf("%v", got)
	}
}
