package smtplb

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/discover"
)

// This file finds the providers of domains that no list names, by who takes their mail. A message never needs the answer: it goes out without, where that is late.

// MXResolver is what MX records are asked for. *net.Resolver is one. The method must end with its context.
type MXResolver interface {
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
}

const (
	mxPatience = time.Second // of a message, for the first answers about its recipients' domains
	mxShare    = 10          // but no more than this part of the caller's time
	mxGood     = time.Hour   // how long an answer counts that names hosts
	mxNegative = 10 * time.Minute
	mxRetry    = time.Minute // after a failure
	mxLookups  = 16          // at a time
	mxQueue    = 4096        // lookups that wait for their turn; what comes on top goes without
	mxDomains  = 1 << 16     // that are remembered
)

// MXStats tells of the lookups by which providers are found, see Config.MXResolver.
type MXStats struct {
	Domains  int    // that are remembered
	Lookups  uint64 // that have ended
	Failures uint64 // of them, those that brought no answer
	Missed   uint64 // recipients who went without a provider because there was no answer yet
}

// mailhosts remembers whose the hosts are that take a domain's mail. Its zero value is ready for adopt.
type mailhosts struct {
	mu       sync.Mutex // guards the following fields; held for arithmetic, and a look at a few domains
	resolver MXResolver
	suffixes discover.Suffixes
	era      int // of suffixes
	known    map[string]*mailhost
	queue    []string // lookups that wait
	running  int      // lookups
	slow     bool     // a message has waited in vain, and no lookup was quick since: nobody waits
	counts   MXStats
}

// mailhost is what is known of one domain.
type mailhost struct {
	provider string // "": nobody's that has a name, or not known
	answered bool   // DNS has said so
	failed   bool   // the last lookup did
	era      int    // in which it was answered
	due      time.Time
	done     chan struct{} // closed when the lookup ends that waits or runs; nil: there is none
}

// adopt takes what a configuration says. What was found by other suffixes is looked up again.
func (m *mailhosts) adopt(c *checked) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resolver = c.MXResolver
	if !maps.Equal(m.suffixes, c.suffixes) {
		m.suffixes = c.suffixes
		m.era++
	}
}

// recall returns what is known of a domain's provider.
func (m *mailhosts) recall(host string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.known[host]; x != nil && x.answered && x.era == m.era {
		return x.provider
	}
	return ""
}

// ask returns the same, and queues a lookup where it is time to. done is closed when there is an answer where it is worth waiting for: for the first of a domain, as long as DNS is quick.
func (m *mailhosts) ask(host string, now time.Time) (provider string, done <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resolver == nil {
		return "", nil
	}
	x := m.known[host]
	if x == nil {
		if len(m.queue) >= mxQueue || !m.room() {
			m.counts.Missed++
			return "", nil
		}
		x = new(mailhost)
		if m.known == nil {
			m.known = make(map[string]*mailhost)
		}
		m.known[host] = x
	}
	fresh := x.answered && x.era == m.era
	if x.done == nil && len(m.queue) < mxQueue && (!now.Before(x.due) || x.answered && !fresh) {
		x.done, x.answered = make(chan struct{}), fresh // what other suffixes told is forgotten
		m.queue = append(m.queue, host)
	}
	switch {
	case fresh: // the last answer holds until there is another
		return x.provider, nil
	case x.done == nil || x.failed || m.slow:
		m.counts.Missed++
		return "", nil
	}
	return "", x.done
}

// room makes sure that one more domain can be remembered: of a few the one goes that would be asked for first.
func (m *mailhosts) room() bool {
	if len(m.known) < mxDomains {
		return true
	}
	var oldest *mailhost
	name, n := "", 0
	for host, x := range m.known { // begins anywhere
		if x.done == nil && (oldest == nil || x.due.Before(oldest.due)) {
			name, oldest = host, x
		}
		if n++; n == 8 && oldest != nil || n == 1024 {
			break
		}
	}
	delete(m.known, name)
	return oldest != nil
}

// next takes a lookup from the queue, if one may begin.
func (m *mailhosts) next() (host string, r MXResolver, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) == 0 || m.running >= mxLookups {
		return "", nil, false
	}
	host, m.queue = m.queue[0], m.queue[1:]
	if len(m.queue) == 0 {
		m.queue = nil
	}
	m.running++
	return host, m.resolver, true
}

// note takes what DNS said of a domain. A failure leaves the last answer as it is.
func (m *mailhosts) note(host string, took time.Duration, hosts []string, err error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	m.counts.Lookups++
	x := m.known[host]
	switch {
	case err != nil:
		m.counts.Failures++
		x.due = now.Add(mxRetry)
	case hosts == nil:
		x.due = now.Add(mxNegative)
	default:
		x.due = now.Add(mxGood)
	}
	if x.failed = err != nil; err == nil {
		x.provider, x.answered, x.era = m.suffixes.Owner(hosts), true, m.era
		if took < mxPatience {
			m.slow = false
		}
	}
	close(x.done)
	x.done = nil
}

// missed says that a message has waited in vain for so many recipients.
func (m *mailhosts) missed(n int, slow bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts.Missed += uint64(n)
	m.slow = m.slow || slow
}

func (m *mailhosts) stats() MXStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.counts
	s.Domains = len(m.known)
	return s
}

// mailDomain returns the domain of x whose MX records could tell of a provider: not that of an address literal, nor a name without a dot, which means another host in each network.
func (x *recipient) mailDomain() (host string, ok bool) {
	host = x.addr[strings.LastIndexByte(x.addr, '@')+1:]
	return host, strings.IndexByte(host, '.') > 0 && host[0] != '['
}

// identify finds the providers of d's recipients, once for the whole send: whose limits count for whom must not change on the way. It waits for what was never asked before, all together for a moment.
func (p *Pool) identify(ctx context.Context, d *delivery) {
	m, now := &p.mailhosts, time.Now()
	type wait struct {
		*recipient
		host string
		done <-chan struct{}
	}
	var waits []wait
	for i := range d.rcpts {
		x := &d.rcpts[i]
		host, ok := x.mailDomain()
		if !ok || d.fleet.providerOf(x) != nil {
			continue
		}
		var done <-chan struct{}
		if x.operator, done = m.ask(host, now); done != nil {
			waits = append(waits, wait{x, host, done})
		}
	}
	p.lookUp()
	if len(waits) == 0 {
		return
	}
	patience := mxPatience
	if d.total > 0 {
		patience = min(patience, d.total/mxShare)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for n, w := range waits {
		slow := false
		select {
		case <-w.done:
			w.operator = m.recall(w.host)
			continue
		case <-timer.C:
			slow = patience == mxPatience
		case <-ctx.Done():
		case <-p.ctx.Done():
		}
		late := 0
		for _, w := range waits[n:] {
			select {
			case <-w.done:
				w.operator = m.recall(w.host)
			default:
				late++
			}
		}
		m.missed(late, slow && late > 0)
		return
	}
}

// recallProviders is identify without asking anybody.
func (d *delivery) recallProviders() {
	for i := range d.rcpts {
		x := &d.rcpts[i]
		if host, ok := x.mailDomain(); ok && d.fleet.providerOf(x) == nil {
			x.operator = d.pool.mailhosts.recall(host)
		}
	}
}

// lookUp begins the lookups that may begin, each in a goroutine of the pool. They end with Close, and with Shutdown when no send is left.
func (p *Pool) lookUp() {
	for {
		host, r, ok := p.mailhosts.next()
		if !ok {
			return
		}
		if !p.gate.spawn(p.races, func() { p.lookUpMX(host, r) }) {
			p.mailhosts.note(host, 0, nil, ErrClosed)
		}
	}
}

func (p *Pool) lookUpMX(host string, r MXResolver) {
	ctx, cancel := context.WithTimeout(p.races, lookupTimeout)
	defer cancel()
	var hosts []string
	err := fmt.Errorf("%w: the MXResolver did not return", discover.ErrUnavailable)
	begun := time.Now()
	defer func() { // it is the caller's code, and may panic or end the goroutine
		if x := recover(); x != nil {
			err = fmt.Errorf("%w: the MXResolver panicked: %v", discover.ErrUnavailable, x)
		}
		p.mailhosts.note(host, time.Since(begun), hosts, err)
		p.lookUp()
	}()
	if r == nil { // an Update took it away while the lookup waited
		err = fmt.Errorf("%w: there is no MXResolver any more", discover.ErrUnavailable)
		return
	}
	hosts, err = discover.LookupMX(ctx, r, host)
}
