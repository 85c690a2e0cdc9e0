package smtplb

import (
	"fmt"
	"strings"

	"github.com/smtplb/smtplb/internal/balance"
)

// This file has the package's own balancers. What they do is in internal/balance, on plain numbers; here it is given relays.

// ownBalancer is one of them.
type ownBalancer struct {
	name   string
	picker func(relays []RelayView) Picker
	fault  string // in its options
	slows  bool   // relays that are far slower than the others get less of their weight
	by     string // what it goes by, see Plan.By
	keeps  bool   // to pick changes nothing: the next picks of such a message are the same
}

// The values of Plan.By.
const (
	byWeight = "weight"
	byBoth   = "weight, load where a relay is behind"
	byLoad   = "load"
	byTime   = "latency and load"
	byKey    = "key"
	byOrder  = "order"
)

func (b *ownBalancer) NewPicker(relays []RelayView) Picker { return b.picker(relays) }

// String returns the name of the function that made it.
func (b *ownBalancer) String() string { return b.name }

// turnPicker is a Picker that goes by what a message's first attempt is for: its turn.
type turnPicker struct {
	p interface {
		Pick(first bool, skip []uint64) int
	}
}

func (p turnPicker) Pick(info PickInfo) int { return p.p.Pick(info.Attempt <= 1, info.Skip) }

// Adaptive is the default: weighted round robin as long as nobody is behind, and least connections as soon as somebody is.
//
// The relay whose turn it is (see RoundRobin) takes the message, unless another one would, with this message, still have less in flight for its weight than
// that one has without it. So with little traffic the shares are exactly those of the weights, a light relay's included, and under load a relay that is
// slower than it was gets as much as it can take. Of more than 32 relays in a tier one, drawn by weight, is compared instead of all.
//
// Besides, a relay whose envelopes take more than three times as long as the median of its tier, over the last half minute or so, has its weight cut in proportion, to a twentieth at the
// least: it gets no more in flight than others have. Stats says so: RelayStats.Slow, and Reason is "slow 25×". As long as others have free connections, and at least half of the tier's weight, it
// also gets no more than a message in ten seconds, so that 99 of 100 sends don't meet it; three envelopes in a row that aren't slow, or the mean, make it one of them again.
//
// A relay that fails fast never has anything in flight; that it attracts no traffic is the circuit breaker's doing, and failover's.
func Adaptive() Balancer {
	return &ownBalancer{name: "Adaptive", by: byBoth, slows: true, picker: func(relays []RelayView) Picker {
		return turnPicker{balance.NewAdaptive(weights(relays), loads(relays))}
	}}
}

// RoundRobin gives each relay its weight's share, as evenly as can be: counted from the start of a period, no relay is ever a whole message away from
// its ideal share (R. Tijdeman, "The chairman assignment problem", 1980). It starts at a random point of the period, so that many processes don't
// begin with the same relay. A pick costs one atomic addition. Where the relay whose turn it is can't be taken, a weighted draw among the others
// decides, so that nobody inherits a dead relay's whole share.
func RoundRobin() Balancer {
	return &ownBalancer{name: "RoundRobin", by: byWeight, picker: func(relays []RelayView) Picker {
		return turnPicker{balance.NewRoundRobin(weights(relays))}
	}}
}

// LeastInFlight takes the relay with the fewest sends in flight for its weight, as leastconn does elsewhere. Of several, it is the one whose turn it is
// (see RoundRobin), so that an idle pool follows the weights; with a few messages in flight light relays get more than their share. It looks at every relay of
// the tier.
func LeastInFlight() Balancer {
	return &ownBalancer{name: "LeastInFlight", by: byLoad, picker: func(relays []RelayView) Picker {
		return turnPicker{balance.NewLeastInFlight(weights(relays), loads(relays))}
	}}
}

// Latency takes the relay with the least latency × (sends in flight + 1) / weight. The latency is RelayView.Latency: a mean over half a minute or so of how
// long it takes until a relay has taken an envelope. The message's own transfer is not in it, so large messages don't make a relay look slow. Of more than 32 relays
// in a tier, the better of two different ones, drawn by weight, is taken.
//
// It is the best of all where one of several like relays gets slow without failing. It doesn't keep to the weights: with little traffic, the
// fastest relay gets nearly everything.
func Latency() Balancer {
	return &ownBalancer{name: "Latency", by: byTime, picker: func(relays []RelayView) Picker {
		latents := make([]balance.Latent, len(relays))
		for i, r := range relays {
			latents[i] = r
		}
		return turnPicker{balance.NewLatency(weights(relays), latents)}
	}}
}

// Random draws a relay by weight. It suits processes that send a message or two and end: there is no sequence of which each of them would see the start only.
func Random() Balancer {
	return &ownBalancer{name: "Random", by: byWeight, picker: func(relays []RelayView) Picker {
		return randomPicker{balance.NewAlias(weights(relays))}
	}}
}

type randomPicker struct{ alias *balance.Alias }

func (p randomPicker) Pick(info PickInfo) int { return p.alias.DrawAmong(info.Skip) }

// FirstAvailable takes the first relay, in the order of Config.Relays, that can be used and has a free connection: the next is for what the first can't take. Weights don't matter, but for 0.
// Where the second is to be used only when the first is down, not when it is merely full, use Relay.Tier.
func FirstAvailable() Balancer {
	return &ownBalancer{name: "FirstAvailable", by: byOrder, keeps: true, picker: func(relays []RelayView) Picker {
		return firstPicker(weights(relays))
	}}
}

type firstPicker []float64 // weights

func (p firstPicker) Pick(info PickInfo) int {
	for i, w := range p {
		if w > 0 && !info.Skip.Has(i) {
			return i
		}
	}
	return -1
}

// HashBy says what of a message Hash goes by.
type HashBy uint8

const (
	// HashKey: Envelope.Key, such as a tenant.
	HashKey HashBy = iota
	// HashSender: the sender's address.
	HashSender
	// HashSenderDomain: the domain of the sender's address.
	HashSenderDomain
	// HashRecipientDomain: the domain of the first recipient.
	HashRecipientDomain
)

// String returns "key", "sender", "sender domain" or "recipient domain".
func (b HashBy) String() string {
	switch b {
	case HashKey:
		return "key"
	case HashSender:
		return "sender"
	case HashSenderDomain:
		return "sender domain"
	case HashRecipientDomain:
		return "recipient domain"
	}
	return fmt.Sprintf("HashBy(%d)", uint8(b))
}

// HashOptions are the options of Hash. The zero value hashes Envelope.Key, without a bound.
type HashOptions struct {
	// By is what of a message decides. Default: HashKey. An envelope without a Key goes by its sender, and one with the null sender by the domain of its first recipient.
	By HashBy
	// Load is how many times its weight's share of all sends in flight a relay may have, from 1.25 to 2. What would be more goes to the key's second relay, and so on. A smaller
	// number spreads the load better, a greater one keeps more keys at home. 0: no bound, but for the relay's connections: a message whose relay has no free one leaves through the key's next relay.
	Load float64
}

// Hash gives every key its relay: messages of one sender, or one tenant, leave through one address, which keeps reputations apart, and lets greylisting recognise a retry. Each relay has
// as many of the keys as its weight says. Which is whose is computed from the relays' names (weighted rendezvous hashing), so that all processes with the same relays agree,
// now and in later versions, and nothing needs to be stored: a relay that goes away, or is skipped, loses its own keys to all others, and no other key moves.
//
// Beyond 64 relays in a tier keys are taken together in 65,536 slots, of which a relay among 1,000 has about 65: its share is then that of its weight ± an eighth or so. Keys move
// where a tier grows from 64 relays to 65, or shrinks so.
//
// Options that are not as documented are a *ConfigError of New.
func Hash(o HashOptions) Balancer {
	b := &ownBalancer{name: "Hash by " + o.By.String(), by: byKey, keeps: true}
	switch {
	case o.By > HashRecipientDomain:
		b.fault = fmt.Sprintf("is Hash with HashOptions.By %d, which there isn't", uint8(o.By))
	case o.Load != 0 && !(o.Load >= 1.25 && o.Load <= 2):
		b.fault = fmt.Sprintf("is Hash with HashOptions.Load %v; it must be 1.25 to 2 (0: no bound)", o.Load)
	}
	b.picker = func(relays []RelayView) Picker {
		names := make([]string, len(relays))
		for i, r := range relays {
			names[i] = r.Name()
		}
		return hashPicker{balance.NewHash(weights(relays), names, loads(relays), o.Load), o.By}
	}
	return b
}

type hashPicker struct {
	hash *balance.Hash
	by   HashBy
}

func (p hashPicker) Pick(info PickInfo) int { return p.hash.Pick(p.by.of(&info), info.Skip) }

// of returns what of a message is hashed.
func (b HashBy) of(info *PickInfo) string {
	switch {
	case b == HashKey && info.Key != "":
		return info.Key
	case b == HashRecipientDomain || info.From == "":
		return info.Domain
	case b == HashSenderDomain:
		return info.From[strings.LastIndexByte(info.From, '@')+1:]
	}
	return info.From
}

func weights(relays []RelayView) []float64 {
	w := make([]float64, len(relays))
	for i, r := range relays {
		w[i] = r.Weight()
	}
	return w
}

func loads(relays []RelayView) []balance.Load {
	l := make([]balance.Load, len(relays))
	for i, r := range relays {
		if v, ok := r.(view); ok {
			word, shift := v.pool.conns.Gauge(v.lane)
			l[i] = balance.Gauge{Word: word, Shift: shift}
		} else {
			l[i] = r
		}
	}
	return l
}
