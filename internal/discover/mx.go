package discover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// MXResolver is what is asked for MX records. *net.Resolver is one.
type MXResolver interface {
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
}

// maxMX bounds the hosts of an answer that are looked at. A domain that names more is nobody's.
const maxMX = 64

// LookupMX asks which hosts take a domain's mail. There are none, and no error, where the domain doesn't exist, has no MX records (its mail goes to the host of that name, RFC 5321 §5.1), takes no mail
// (null MX, RFC 7505), or names what can't be a host: all that is an answer, and nobody can be told from it. The error is one of ErrUnavailable.
func LookupMX(ctx context.Context, r MXResolver, domain string) (hosts []string, err error) {
	// The final dot keeps the search list of resolv.conf out of it.
	records, err := r.LookupMX(ctx, strings.TrimSuffix(domain, ".")+".")
	var dns *net.DNSError
	switch {
	case err == nil:
	case len(records) > 0: // net.Resolver gives what it could read together with an error about the rest; whose that is can't be known
		return nil, nil
	case errors.As(err, &dns) && dns.IsNotFound && ctx.Err() == nil:
		return nil, nil
	default:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, asDNS(err, domain))
	}
	if len(records) > maxMX {
		return nil, nil
	}
	for _, mx := range records {
		if mx == nil {
			continue
		}
		host, ok := hostname(mx.Host)
		if !ok { // the "." of a null MX too
			return nil, nil
		}
		hosts = append(hosts, host)
	}
	return hosts, nil
}

// Suffixes says whose the hosts below a name are, and the host of that name: names in the form of Target.Host.
type Suffixes map[string]string

// Owner returns whose all of the hosts are, "" where they are not all of one owner. Of two names that a host is below the longer counts.
func (s Suffixes) Owner(hosts []string) string {
	owner := ""
	for i, host := range hosts {
		of := s.of(host)
		if of == "" || i > 0 && of != owner {
			return ""
		}
		owner = of
	}
	return owner
}

func (s Suffixes) of(host string) string {
	for {
		if owner, ok := s[host]; ok {
			return owner
		}
		_, up, ok := strings.Cut(host, ".")
		if !ok {
			return ""
		}
		host = up
	}
}
