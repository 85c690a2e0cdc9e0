package smtplb_test

import (
	"context"
	"net"
)

// No test asks real DNS: it would answer in its own time, or not at all, and that inside a bubble where time stands still meanwhile.
func init() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		panic("a test asks real DNS: give it a Dial, or a Resolver")
	}}
}
