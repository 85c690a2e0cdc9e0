package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// What LookupSubmission finds where it finds no target. Each wraps what lies behind it, where something does.
var (
	// ErrNotOffered: the domain says that it offers no submission (a target of ".", RFC 2782).
	ErrNotOffered = errors.New("the domain offers no submission")
	// ErrNoRecords: DNS answered that there are no such records, or no such domain.
	ErrNoRecords = errors.New("the domain has no SRV records for submission")
	// ErrUnavailable: DNS did not answer, or not with anything that can be used. It says nothing about the service.
	ErrUnavailable = errors.New("the SRV records for submission can't be looked up")
)

// maxTargets bounds what one domain can bring into a pool; the most wanted stay.
const maxTargets = 64

// Target is a host that takes submissions.
type Target struct {
	Host     string // a domain name in lower case, without the trailing dot
	Port     int
	Priority int  // of the SRV record: the lowest is used first
	Weight   int  // of the SRV record, see Weights
	Implicit bool // TLS from the first byte (_submissions), else by STARTTLS (_submission)
}

// LookupSubmission asks where the domain's mail is submitted: _submissions._tcp (RFC 8314 §5.1, implicit TLS), and _submission._tcp (RFC 6186 §3.1, STARTTLS)
// where the former gives no target. The targets come by priority, then weight (the heavier first), then name.
//
// The services are not mixed. RFC 8314 §3 prefers implicit TLS, and its §5.1 lets confidentiality win over the records' priorities, which RFC 6186 §3.4 compares between
// protocols that do different things (IMAP and POP3), not between two ways to the same server: most domains list one host under both. One pool would then have each of their hosts
// twice, with two breakers and twice the connections. For the same reason nothing is said about _submission while the answer for _submissions is missing for
// a while (ErrUnavailable): else whoever can suppress one answer chooses the kind of TLS.
//
// Names from DNS are not to be trusted unless the answer was signed, and that is not known here. So the caller must check the certificate against the domain that was configured,
// not against Target.Host (RFC 6186 §4 and §6, RFC 6125 §6): tls.Config.ServerName, which is also sent as SNI, is the domain, but where the user has set another. The name
// for SASL is the domain too. A relay made from a target never goes without TLS: RFC 8314 §5.1 ignores what would, and so STARTTLS is required. Nor may DNS be asked at each
// connection (RFC 8314 §5.1); see Refresher.
func LookupSubmission(ctx context.Context, r Resolver, domain string) ([]Target, error) {
	targets, err := lookup(ctx, r, "submissions", domain)
	if err == nil || errors.Is(err, ErrUnavailable) {
		return targets, err
	}
	first := err
	targets, err = lookup(ctx, r, "submission", domain)
	if errors.Is(err, ErrNoRecords) && errors.Is(first, ErrNotOffered) {
		err = first // silence about one doesn't take back what was said of the other
	}
	return targets, err
}

// lookup asks for one service.
func lookup(ctx context.Context, r Resolver, service, domain string) ([]Target, error) {
	where := "_" + service + "._tcp." + domain
	// The final dot keeps the search list of resolv.conf out of it.
	_, records, err := orDefault(r).LookupSRV(ctx, service, "tcp", strings.TrimSuffix(domain, ".")+".")
	var dns *net.DNSError
	switch {
	case err == nil:
	case len(records) > 0: // net.Resolver gives what it could read together with an error about the rest
	case errors.As(err, &dns) && dns.IsNotFound && ctx.Err() == nil:
		return nil, fmt.Errorf("%w: %w", ErrNoRecords, err)
	default:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, asDNS(err, where))
	}
	var targets []Target
	none := false
	for _, s := range records {
		if s == nil {
			continue
		}
		if s.Target == "." {
			none = true
			continue
		}
		if host, ok := hostname(s.Target); ok && s.Port > 0 {
			targets = append(targets, Target{Host: host, Port: int(s.Port), Priority: int(s.Priority), Weight: int(s.Weight), Implicit: service == "submissions"})
		}
	}
	switch {
	case len(targets) > 0: // RFC 2782: a "." means something where it stands alone
		return trimmed(targets), nil
	case none:
		return nil, fmt.Errorf("%w: the target of %s is %q", ErrNotOffered, where, ".")
	case len(records) == 0:
		return nil, fmt.Errorf("%w: %w", ErrNoRecords, &net.DNSError{Err: "empty answer", Name: where, IsNotFound: true})
	}
	if err == nil {
		err = &net.DNSError{Err: "no record has a valid target", Name: where}
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// trimmed sorts targets, merges duplicates and bounds their number. The same host and port twice is one relay: of the better priority, and, as a draw between the
// records would have it, of the weights' sum where the priority is the same.
func trimmed(targets []Target) []Target {
	byPlace := make(map[Target]int, len(targets))
	list := targets[:0]
	for _, t := range targets {
		place := Target{Host: t.Host, Port: t.Port}
		i, twice := byPlace[place]
		switch {
		case !twice:
			byPlace[place] = len(list)
			list = append(list, t)
		case t.Priority == list[i].Priority:
			list[i].Weight += t.Weight
		case t.Priority < list[i].Priority:
			list[i] = t
		}
	}
	slices.SortFunc(list, func(a, b Target) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.Weight, a.Weight), strings.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	return slices.Clip(list[:min(len(list), maxTargets)])
}

// hostname is an SRV target in the form that targets are compared in; false where it can't be a host's name (RFC 1123 §2.1, with the underscore that some use).
func hostname(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return "", false
	}
	if _, err := netip.ParseAddr(s); err == nil { // RFC 2782: the target is a domain name
		return "", false
	}
	b := []byte(s)
	label, digits := 0, true
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			b[i] = c + ('a' - 'A')
			digits = false
		case c >= 'a' && c <= 'z', c == '_':
			digits = false
		case c >= '0' && c <= '9':
		case c == '-':
			if label == 0 || i+1 == len(b) || b[i+1] == '.' {
				return "", false
			}
			digits = false
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = -1
			digits = true
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	return string(b), label > 0 && !digits // a name that ends in a number would be read as an address
}

// Tiers gives each target its tier: 0 for those of the best priority, 1 for the next, and so on.
func Tiers(targets []Target) []int {
	priorities := make([]int, len(targets))
	for i, t := range targets {
		priorities[i] = t.Priority
	}
	slices.Sort(priorities)
	priorities = slices.Compact(priorities)
	tiers := make([]int, len(targets))
	for i, t := range targets {
		tiers[i], _ = slices.BinarySearch(priorities, t.Priority)
	}
	return tiers
}

// smallShare is how many times the least positive weight outweighs a weight of 0.
const smallShare = 100

// Weights gives each target its weight as a relay, 1 at least and 1,000,000 at most. Among targets of one priority that have all a weight of 0, all weigh 1 ("no server selection to
// do", RFC 2782). Where only some do, those "should have a very small chance" there: they weigh 1, and the others 100 times their own weight. Else the weights stay as they are. What exceeds
// the bound brings all of its priority down in proportion.
func Weights(targets []Target) []int {
	type group struct {
		zero, positive bool
		most           int
	}
	groups := map[int]group{}
	for _, t := range targets {
		g := groups[t.Priority]
		g.zero, g.positive = g.zero || t.Weight == 0, g.positive || t.Weight > 0
		g.most = max(g.most, t.Weight)
		groups[t.Priority] = g
	}
	const most = 1_000_000
	weights := make([]int, len(targets))
	for i, t := range targets {
		g := groups[t.Priority]
		w, top := int64(t.Weight), int64(g.most)
		if g.zero && g.positive {
			w, top = w*smallShare, top*smallShare
		}
		if top > most {
			w = w * most / top
		}
		weights[i] = int(max(w, 1))
	}
	return weights
}
