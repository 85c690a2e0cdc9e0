package smtplb

// Tokens is what the retry budget holds.
func (p *Pool) Tokens() float64 { return p.budget.tokens() }

// LastPlace is the highest place among the lanes of the relays that there are. Those of removed relays are to be given away again.
func (p *Pool) LastPlace() int {
	last := -1
	for _, r := range p.fleet.Load().relays {
		last = max(last, r.member)
	}
	return last
}

// Background is how many goroutines of its own the pool has.
func (p *Pool) Background() int {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	return p.gate.bg
}
