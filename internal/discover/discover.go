// Package discover finds the hosts behind a relay's name: by A and AAAA records each time that a connection is dialled (Dialer), and by
// SRV records from time to time (LookupSubmission, Refresher). It knows no SMTP, and of what it starts nothing outlasts the context of a dial.
package discover

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// Resolver is what is asked. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
}

func orDefault(r Resolver) Resolver {
	if r == nil {
		return net.DefaultResolver
	}
	return r
}

// asDNS is err as a *net.DNSError, so that any Resolver's failure counts as one of name resolution.
func asDNS(err error, host string) error {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return err
	}
	var t interface{ Timeout() bool }
	timeout := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
	return &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: host, IsTimeout: timeout, IsTemporary: true}
}
