package smtplb_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/smtp"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// faults is New's error as "path: reason", in its order.
func faults(t *testing.T, err error) (paths, reasons []string) {
	t.Helper()
	if err == nil {
		return nil, nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is not joined: %v", err, err)
	}
	for _, e := range joined.Unwrap() {
		ce, ok := e.(*smtplb.ConfigError)
		if !ok {
			t.Fatalf("%T is no *ConfigError: %v", e, e)
		}
		if ce.Reason == "" || !strings.Contains(e.Error(), ce.Path+": "+ce.Reason) || strings.ContainsAny(e.Error(), "\r\n") {
			t.Errorf("%q", e.Error())
		}
		paths, reasons = append(paths, ce.Path), append(reasons, ce.Reason)
	}
	return paths, reasons
}

func TestAllFaultsAtOnce(t *testing.T) {
	p, err := smtplb.New(smtplb.Config{
		LocalName: "not a name",
		Relays: []smtplb.Relay{
			{Weight: -1},
			{Addr: "mx.example.com:587", Tier: -1, TLS: 77},
			{Addr: "mx.example.com:25", Breaker: smtplb.Breaker{Ratio: 2}, LocalAddr: "here"},
		},
	})
	if p != nil || err == nil {
		t.Fatalf("%v, %v", p, err)
	}
	got, _ := faults(t, err)
	slices.Sort(got)
	want := []string{"LocalName", "Relays[0].Addr", "Relays[0].Weight", "Relays[1].TLS", "Relays[1].Tier", "Relays[2].Breaker.Ratio", "Relays[2].LocalAddr"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	var first *smtplb.ConfigError
	if !errors.As(err, &first) || first.Path != "LocalName" {
		t.Errorf("errors.As found %+v", first)
	}
}

func TestConfigRules(t *testing.T) {
	auth := func(context.Context, smtplb.AuthRequest) (smtp.Auth, error) { return nil, errors.New("not called") }
	for _, test := range []struct {
		name   string
		relay  smtplb.Relay // Addr defaults to mx.example.com:587
		paths  string       // "" if it is in order
		reason string       // part of the first reason
	}{
		{"nothing but an address", smtplb.Relay{}, "", ""},
		{"weight", smtplb.Relay{Weight: 1_000_000}, "", ""},
		{"negative weight", smtplb.Relay{Weight: -1}, "Weight", "-1"},
		{"huge weight", smtplb.Relay{Weight: 1_000_001}, "Weight", "1000000"},
		{"negative tier", smtplb.Relay{Tier: -1}, "Tier", "-1"},
		{"huge tier", smtplb.Relay{Tier: math.MaxInt}, "", ""},
		{"name with a line end", smtplb.Relay{Name: "a\nb"}, "Name", "control"},
		{"name with DEL", smtplb.Relay{Name: "a\x7f"}, "Name", "control"},
		{"long name", smtplb.Relay{Name: strings.Repeat("n", 256)}, "Name", "255"},

		{"credentials", smtplb.Relay{Username: "u", Password: "p"}, "", ""},
		{"credentials, starttls", smtplb.Relay{Username: "u", Password: "p", TLS: smtplb.TLSStartTLS}, "", ""},
		{"credentials, implicit", smtplb.Relay{Username: "u", Password: "p", TLS: smtplb.TLSImplicit}, "", ""},
		{"credentials, opportunistic", smtplb.Relay{Username: "u", Password: "p", TLS: smtplb.TLSOpportunistic}, "TLS", "opportunistic"},
		{"credentials, opportunistic, loopback", smtplb.Relay{Addr: "localhost:25", Username: "u", Password: "p", TLS: smtplb.TLSOpportunistic}, "TLS", "opportunistic"},
		{"credentials, none", smtplb.Relay{Username: "u", Password: "p", TLS: smtplb.TLSNone}, "TLS", "clear"},
		{"credentials, none, a name that begins like loopback", smtplb.Relay{Addr: "localhost.example.com:25", Username: "u", TLS: smtplb.TLSNone}, "TLS", "clear"},
		{"credentials, none, unspecified address", smtplb.Relay{Addr: "0.0.0.0:25", Username: "u", TLS: smtplb.TLSNone}, "TLS", "clear"},
		{"credentials, none, localhost", smtplb.Relay{Addr: "LocalHost:25", Username: "u", TLS: smtplb.TLSNone}, "", ""},
		{"credentials, none, 127/8", smtplb.Relay{Addr: "127.1.2.3:25", Username: "u", TLS: smtplb.TLSNone}, "", ""},
		{"credentials, none, ::1", smtplb.Relay{Addr: "[::1]:25", Username: "u", TLS: smtplb.TLSNone}, "", ""},
		{"credentials, none, unix", smtplb.Relay{Addr: "unix:/run/smtp", Username: "u", TLS: smtplb.TLSNone}, "", ""},
		{"Auth, none", smtplb.Relay{Auth: auth, TLS: smtplb.TLSNone}, "TLS", "clear"},
		{"Auth, opportunistic", smtplb.Relay{Auth: auth, TLS: smtplb.TLSOpportunistic}, "TLS", "opportunistic"},
		{"no credentials, none", smtplb.Relay{TLS: smtplb.TLSNone}, "", ""},
		{"no such mode", smtplb.Relay{TLS: smtplb.TLSNone + 1}, "TLS", "TLSMode(5)"},

		{"Auth", smtplb.Relay{Auth: auth}, "", ""},
		{"Auth and Username", smtplb.Relay{Auth: auth, Username: "u"}, "Auth", "Username"},
		{"Auth and mechanisms", smtplb.Relay{Auth: auth, AuthMechanisms: []string{"PLAIN"}}, "Auth", "AuthMechanisms"},
		{"password alone", smtplb.Relay{Password: "hunter2"}, "Password", "Username"},
		{"NUL in the user name", smtplb.Relay{Username: "a\x00b", Password: "p"}, "Username", "NUL"},
		{"NUL in the password", smtplb.Relay{Username: "a", Password: "hunter2\x00"}, "Username", "NUL"},
		{"mechanisms", smtplb.Relay{Username: "u", AuthMechanisms: []string{"scram-sha-256", "CRAM-MD5", "XOAUTH2", "LOGIN", "plain", "SCRAM-SHA-1"}}, "", ""},
		{"unknown mechanisms", smtplb.Relay{Username: "u", AuthMechanisms: []string{"PLAIN", "GSSAPI", "X"}}, "AuthMechanisms[1] AuthMechanisms[2]", "GSSAPI"},

		{"local address", smtplb.Relay{LocalAddr: "192.0.2.1"}, "", ""},
		{"local IPv6 address", smtplb.Relay{LocalAddr: "2001:db8::1"}, "", ""},
		{"local name", smtplb.Relay{LocalAddr: "eth0"}, "LocalAddr", "eth0"},
		{"local address with a port", smtplb.Relay{LocalAddr: "192.0.2.1:25"}, "LocalAddr", "IP"},
		{"local address of a unix socket", smtplb.Relay{Addr: "unix:/run/smtp", LocalAddr: "192.0.2.1"}, "LocalAddr", "unix"},

		{"breaker off by a number", smtplb.Relay{Breaker: smtplb.Breaker{Consecutive: -1, Ratio: 1, MinOutcomes: 1}}, "", ""},
		{"ratio below 0", smtplb.Relay{Breaker: smtplb.Breaker{Ratio: -0.1}}, "Breaker.Ratio", "-0.1"},
		{"ratio above 1", smtplb.Relay{Breaker: smtplb.Breaker{Ratio: 1.01}}, "Breaker.Ratio", "1.01"},
		{"ratio NaN", smtplb.Relay{Breaker: smtplb.Breaker{Ratio: math.NaN()}}, "Breaker.Ratio", "NaN"},
		{"negative outcomes", smtplb.Relay{Breaker: smtplb.Breaker{MinOutcomes: -1}}, "Breaker.MinOutcomes", "Off"},
		{"negative open time", smtplb.Relay{Breaker: smtplb.Breaker{OpenFor: -1}}, "Breaker.OpenFor", "Off"},
		{"negative longest", smtplb.Relay{Breaker: smtplb.Breaker{MaxOpen: -1}}, "Breaker.MaxOpen", "Off"},

		{"TLS 1.1 at most", smtplb.Relay{TLSConfig: &tls.Config{MaxVersion: tls.VersionTLS11}}, "TLSConfig.MaxVersion", "1.2"},
		{"TLS 1.2 at most", smtplb.Relay{TLSConfig: &tls.Config{MaxVersion: tls.VersionTLS12}}, "", ""},
		{"keywords", smtplb.Relay{IgnoreEHLO: []string{"pipelining", "X-A"}}, "", ""},
		{"no keyword", smtplb.Relay{IgnoreEHLO: []string{"SIZE", "a b", ""}}, "IgnoreEHLO[1] IgnoreEHLO[2]", `"a b"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.relay.Addr == "" {
				test.relay.Addr = "mx.example.com:587"
			}
			_, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{test.relay}})
			paths, reasons := faults(t, err)
			for i := range paths {
				paths[i] = strings.TrimPrefix(paths[i], "Relays[0].")
			}
			if got := strings.Join(paths, " "); got != test.paths {
				t.Fatalf("faults at %q, want %q: %v", got, test.paths, err)
			}
			if len(reasons) > 0 && !strings.Contains(reasons[0], test.reason) {
				t.Errorf("%q does not speak of %q", reasons[0], test.reason)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

func TestConfigNames(t *testing.T) {
	for _, test := range []struct {
		name, want string
		config     smtplb.Config
	}{
		{"no relays", "Relays", smtplb.Config{}},
		{"the same name", "Relays[1].Name", smtplb.Config{Relays: []smtplb.Relay{{Name: "a", Addr: "a.test"}, {Name: "a", Addr: "b.test"}}}},
		{"the same address", "Relays[2].Name", smtplb.Config{Relays: []smtplb.Relay{{Addr: "a.test:25"}, {Addr: "a.test:26"}, {Addr: "a.test:25"}}}},
		{"a name that is another's address", "Relays[1].Name", smtplb.Config{Relays: []smtplb.Relay{{Addr: "a.test:25"}, {Name: "a.test:25", Addr: "b.test"}}}},
		{"the same address, other names", "", smtplb.Config{Relays: []smtplb.Relay{{Name: "a", Addr: "a.test:25"}, {Name: "b", Addr: "a.test:25"}}}},
		{"local name with a blank", "LocalName", smtplb.Config{LocalName: "a b", Relays: []smtplb.Relay{{Addr: "a.test"}}}},
		{"local name with CRLF", "LocalName", smtplb.Config{LocalName: "a\r\nMAIL", Relays: []smtplb.Relay{{Addr: "a.test"}}}},
		{"bad literal", "LocalName", smtplb.Config{LocalName: "[192.0.2.300]", Relays: []smtplb.Relay{{Addr: "a.test"}}}},
		{"IPv6 literal without its tag", "LocalName", smtplb.Config{LocalName: "[2001:db8::1]", Relays: []smtplb.Relay{{Addr: "a.test"}}}},
		{"open literal", "LocalName", smtplb.Config{LocalName: "[192.0.2.1", Relays: []smtplb.Relay{{Addr: "a.test"}}}},
	} {
		_, err := smtplb.New(test.config)
		paths, _ := faults(t, err)
		if got := strings.Join(paths, " "); got != test.want {
			t.Errorf("%s: faults at %q, want %q: %v", test.name, got, test.want, err)
		}
	}
}

// What stands in Addr, and what Dial is asked for.
func TestAddr(t *testing.T) {
	refused := errors.New("refused")
	for _, test := range []struct {
		addr string
		mode smtplb.TLSMode
		want string // "" if it is a fault
	}{
		{"mx.example.com:587", 0, "tcp mx.example.com:587"},
		{"mx.example.com:65535", 0, "tcp mx.example.com:65535"},
		{"mx.example.com", 0, "tcp mx.example.com:587"},
		{"mx.example.com", smtplb.TLSImplicit, "tcp mx.example.com:465"},
		{"MX.Example.COM.:25", 0, "tcp mx.example.com:25"},
		{"under_score.internal:25", 0, "tcp under_score.internal:25"},
		{"192.0.2.1:25", 0, "tcp 192.0.2.1:25"},
		{"192.0.2.1", 0, "tcp 192.0.2.1:587"},
		{"[::1]:587", 0, "tcp [::1]:587"},
		{"[2001:DB8::1]:25", 0, "tcp [2001:db8::1]:25"},
		{"[2001:db8::1]", 0, "tcp [2001:db8::1]:587"},
		{"bücher.example:25", 0, "tcp xn--bcher-kva.example:25"},
		{"BÜCHER.example", 0, "tcp xn--bcher-kva.example:587"},
		{"xn--bcher-kva.example:25", 0, "tcp xn--bcher-kva.example:25"},
		{"例え。テスト:25", 0, "tcp xn--r8jz45g.xn--zckzah:25"},
		{"unix:/run/smtp.sock", 0, "unix /run/smtp.sock"},
		{"unix:relative", 0, "unix relative"},

		{"", 0, ""},
		{":25", 0, ""},
		{"mx.example.com:", 0, ""},
		{"mx.example.com:0", 0, ""},
		{"mx.example.com:65536", 0, ""},
		{"mx.example.com:-25", 0, ""},
		{"mx.example.com:+25", 0, ""},
		{"mx.example.com:smtp", 0, ""},
		{"mx.example.com:25:26", 0, ""},
		{"2001:db8::1", 0, ""},
		{"2001:db8::1:587", 0, ""},
		{"[2001:db8::1", 0, ""},
		{"[]:25", 0, ""},
		{"mx example.com:25", 0, ""},
		{"mx.example.com:25\r\n", 0, ""},
		{"mx\x00.example.com:25", 0, ""},
		{"mx.example.com\x7f", 0, ""},
		{"unix:", 0, ""},
		{"unix:/a\nb", 0, ""},
		{"srv:", 0, ""},
		{"srv:example.com:587", 0, ""},
		{"srv:192.0.2.1", 0, ""},
		{"srv:[2001:db8::1]", 0, ""},
		{"srv:localhost", 0, ""},
		{"srv:a..example", 0, ""},
		{"srv:user@example.com", 0, ""},
		{"a..b:25", 0, ""},
		{"-a.example:25", 0, ""},
		{strings.Repeat("a", 64) + ".example:25", 0, ""},
		{"smtp://mx.example.com", 0, ""},
		{"user@mx.example.com:25", 0, ""},
	} {
		var dialled []string
		pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: test.addr, TLS: test.mode, Dial: func(_ context.Context, network, addr string) (net.Conn, error) {
			dialled = append(dialled, network+" "+addr)
			return nil, refused
		}}}})
		if test.want == "" {
			if paths, _ := faults(t, err); fmt.Sprint(paths) != "[Relays[0].Addr]" {
				t.Errorf("%q: faults at %v", test.addr, paths)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.addr, err)
			continue
		}
		r, err := pool.Deliver(t.Context(), envelope("x@example.com"))
		if got := strings.Join(dialled, ", "); got != test.want || !errors.Is(err, refused) || r.Attempts[0].Relay != test.addr {
			t.Errorf("%q: dialled %q, want %q: %v", test.addr, got, test.want, err)
		}
		pool.Close()
	}
}

// New connects to nothing and starts no goroutine: a bubble whose goroutines don't end would panic.
func TestNewDoesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := runtime.NumGoroutine()
		for range 20 {
			c := smtplb.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
				t.Error("New dials")
				return nil, errors.New("no")
			}}
			for i := range 5 {
				c.Relays = append(c.Relays, smtplb.Relay{Addr: fmt.Sprintf("r%d.test", i), Tier: i / 2, Auth: func(context.Context, smtplb.AuthRequest) (smtp.Auth, error) {
					t.Error("New authenticates")
					return nil, errors.New("no")
				}})
			}
			p, err := smtplb.New(c) // not closed
			if err != nil {
				t.Fatal(err)
			}
			if s := p.Stats(); len(s.Relays) != 5 || s.Relays[4].Breaker != "closed" || s.Relays[0].Weight != 1 {
				t.Errorf("%+v", s)
			}
		}
		time.Sleep(time.Hour)
		if after := runtime.NumGoroutine(); after > before {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}

func TestLocalName(t *testing.T) {
	host, _ := os.Hostname()
	if !strings.Contains(strings.Trim(host, "."), ".") {
		host = "localhost"
	}
	for in, want := range map[string]string{
		"": strings.ToLower(strings.Trim(host, ".")), "Mail.Example.COM": "mail.example.com", "bücher.example": "xn--bcher-kva.example",
		"[192.0.2.1]": "[192.0.2.1]", "[IPv6:2001:db8::1]": "[IPv6:2001:db8::1]", "localhost": "localhost",
	} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { c.LocalName = in })
			defer h.close()
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
			if got := h.relays[0].Messages()[0].HELO; got != want {
				t.Errorf("LocalName %q says EHLO %q, want %q", in, got, want)
			}
		})
	}
}

// What TLS does where nothing was said about it, and where it was.
func TestTLSModes(t *testing.T) {
	const trusted, sni = true, "other.test"
	user := smtplb.Relay{Username: "user", Password: "secret"}
	mode := func(m smtplb.TLSMode) smtplb.Relay { return smtplb.Relay{TLS: m} }
	noTLS := smtptest.WithoutExtensions("STARTTLS")
	auth := smtptest.WithAuth("user", "secret")
	for _, test := range []struct {
		name, addr string
		relay      smtplb.Relay
		opts       []smtptest.Option
		trust      bool
		server     string // TLSConfig.ServerName
		script     func(s *smtptest.Server)
		want       string // "tls", "plain", or the stage and failure at which it ends
	}{
		{"auto", "r.test:587", mode(0), []smtptest.Option{smtptest.WithTLS()}, trusted, "", nil, "tls"},
		{"auto, none offered", "r.test:587", mode(0), nil, false, "", nil, "starttls capability"},
		{"auto, stripped", "r.test:25", mode(0), []smtptest.Option{smtptest.WithTLS(), noTLS}, trusted, "", nil, "starttls capability"},
		{"auto, unknown issuer", "r.test:587", mode(0), []smtptest.Option{smtptest.WithTLS()}, false, "", nil, "tls certificate"},
		{"auto, another name", "r.test:587", mode(0), []smtptest.Option{smtptest.WithCertificateFor(sni)}, trusted, "", nil, "tls certificate"},
		{"auto, ServerName", "r.test:587", mode(0), []smtptest.Option{smtptest.WithCertificateFor(sni)}, trusted, sni, nil, "tls"},
		{"auto, expired", "r.test:587", mode(0), []smtptest.Option{smtptest.WithExpiredCertificate()}, trusted, "", nil, "tls certificate"},
		{"auto, EHLO refused", "r.test:587", mode(0), []smtptest.Option{smtptest.WithoutEHLO()}, false, "", nil, "ehlo "},
		{"auto on 465", "r.test:465", mode(0), []smtptest.Option{smtptest.WithImplicitTLS()}, trusted, "", nil, "tls"},
		{"auto on 465, unknown issuer", "r.test:465", mode(0), []smtptest.Option{smtptest.WithImplicitTLS()}, false, "", nil, "tls certificate"},
		{"implicit, plain relay", "r.test:2465", smtplb.Relay{TLS: smtplb.TLSImplicit}, nil, false, "", nil, "tls tls"},
		{"starttls, refused", "r.test:587", mode(smtplb.TLSStartTLS), []smtptest.Option{smtptest.WithTLS()}, trusted, "", func(s *smtptest.Server) { s.On(smtptest.StartTLS).Reply(454, "4.7.0 TLS not available") }, "starttls "},
		{"starttls, broken handshake", "r.test:587", mode(smtplb.TLSStartTLS), []smtptest.Option{smtptest.WithTLS()}, trusted, "", func(s *smtptest.Server) {
			s.On(smtptest.TLSHandshake).Delay(time.Second).Raw("no TLS here\r\n")
		}, "tls tls"},
		{"starttls, injected reply", "r.test:587", mode(smtplb.TLSStartTLS), []smtptest.Option{smtptest.WithTLS()}, trusted, "", func(s *smtptest.Server) {
			s.On(smtptest.StartTLS).Raw("220 go\r\n250 SIZE 1\r\n")
		}, "starttls out of step"},
		{"none", "r.test:25", mode(smtplb.TLSNone), []smtptest.Option{smtptest.WithTLS()}, false, "", nil, "plain"},

		{"localhost", "localhost:25", mode(0), nil, false, "", nil, "plain"},
		{"127.0.0.1", "127.0.0.1:25", mode(0), nil, false, "", nil, "plain"},
		{"127.9.9.9", "127.9.9.9:25", mode(0), nil, false, "", nil, "plain"},
		{"::1", "[::1]:25", mode(0), nil, false, "", nil, "plain"},
		{"localhost, unknown issuer", "localhost:25", mode(0), []smtptest.Option{smtptest.WithTLS()}, false, "", nil, "tls"},
		{"localhost, unknown issuer, TLSConfig", "localhost:25", mode(0), []smtptest.Option{smtptest.WithTLS()}, false, "localhost", nil, "tls certificate"},
		{"localhost, broken handshake", "localhost:25", mode(0), []smtptest.Option{smtptest.WithTLS()}, false, "", func(s *smtptest.Server) {
			s.On(smtptest.TLSHandshake).Delay(time.Second).Raw("no TLS here\r\n")
		}, "tls tls"},
		{"localhost, dropped handshake", "localhost:25", mode(0), []smtptest.Option{smtptest.WithTLS()}, false, "", func(s *smtptest.Server) { s.On(smtptest.TLSHandshake).Drop() }, "tls reset"},
		{"a name that isn't localhost", "localhost.test:25", mode(0), nil, false, "", nil, "starttls capability"},
		{"opportunistic elsewhere", "r.test:25", mode(smtplb.TLSOpportunistic), nil, false, "", nil, "plain"},
		{"opportunistic elsewhere, unknown issuer", "r.test:25", mode(smtplb.TLSOpportunistic), []smtptest.Option{smtptest.WithTLS()}, false, "", nil, "tls certificate"},

		{"credentials", "r.test:587", user, []smtptest.Option{smtptest.WithTLS(), auth}, trusted, "", nil, "tls user"},
		{"credentials, localhost", "localhost:587", user, []smtptest.Option{smtptest.WithTLS(), auth}, trusted, "", nil, "tls user"},
		{"credentials, localhost, unknown issuer", "localhost:587", user, []smtptest.Option{smtptest.WithTLS(), auth}, false, "", nil, "tls certificate"},
		{"credentials, localhost, stripped", "localhost:587", user, []smtptest.Option{auth}, false, "", nil, "starttls capability"},
		{"credentials, localhost, none", "localhost:587", smtplb.Relay{Username: "user", Password: "secret", TLS: smtplb.TLSNone}, []smtptest.Option{auth}, false, "", nil, "plain user"},
		{"credentials, AUTH not offered", "r.test:587", user, []smtptest.Option{smtptest.WithTLS()}, trusted, "", nil, "auth capability"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				n := smtptest.NewNetwork()
				s := n.NewServer(test.addr, append(test.opts, smtptest.WithLogf(t.Logf))...)
				defer s.Close()
				if test.script != nil {
					test.script(s)
				}
				r := test.relay
				r.Name, r.Addr = "r", test.addr
				if test.trust {
					r.TLSConfig = s.ClientTLS()
				}
				if test.server != "" {
					if r.TLSConfig == nil {
						r.TLSConfig = &tls.Config{}
					}
					r.TLSConfig.ServerName = test.server
				}
				pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{r}, Dial: n.DialContext})
				if err != nil {
					t.Fatal(err)
				}
				defer pool.Close()
				receipt, err := pool.Deliver(t.Context(), envelope("x@example.com"))
				got := ""
				var re *smtplb.RelayError
				if errors.As(err, &re) {
					got = string(re.Stage) + " " + re.Failure
					if c := s.Stats().Commands; outcomes(receipt) != "deferred" || c["MAIL"] != 0 || c["AUTH"] != 0 || s.Stats().Connections > 1 {
						t.Errorf("%v, after %v", receipt, c)
					}
				} else if m := s.Messages(); len(m) == 1 {
					got = "plain"
					if m[0].TLS {
						got = "tls"
					}
					got = strings.TrimSpace(got + " " + m[0].Auth)
				}
				if got != test.want {
					t.Errorf("%q, want %q: %v\n%s", got, test.want, err, s.Transcript())
				}
			})
		})
	}
}

// TLS 1.2 is the least, whatever TLSConfig says, and TLSConfig itself is left as it was.
func TestTLSVersion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		l, err := n.Listen("r.test:465")
		if err != nil {
			t.Fatal(err)
		}
		var offered []uint16
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_ = tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				offered = h.SupportedVersions
				return nil, errors.New("enough")
			}}).Handshake()
		}()
		tc := &tls.Config{MinVersion: tls.VersionTLS10}
		pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "r.test:465", TLSConfig: tc}}, Dial: n.DialContext})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if _, err := pool.Deliver(t.Context(), envelope("x@example.com")); !errors.Is(err, smtplb.ErrTemporary) {
			t.Error(err)
		}
		l.Close()
		if len(offered) == 0 || slices.Min(offered) < tls.VersionTLS12 {
			t.Errorf("offered %x", offered)
		}
		if tc.ServerName != "" || tc.MinVersion != tls.VersionTLS10 || tc.InsecureSkipVerify {
			t.Errorf("TLSConfig was changed: %q %x %v", tc.ServerName, tc.MinVersion, tc.InsecureSkipVerify)
		}
	})
}

// secret is a password that would be recognised in whatever form it is printed.
const secret = `hunter2 "%s/é`

// leak returns the form in which s holds the secret, or a part of it.
func leak(s string) string {
	const core = "hunter2"
	forms := []string{core, hex.EncodeToString([]byte(core)), strings.Trim(fmt.Sprint([]byte(core)), "[]"), "0x68, 0x75, 0x6e"}
	for pad := range 3 { // base64 at any offset, without the characters that depend on what stands around
		e := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", pad) + core))
		forms = append(forms, strings.ToLower(e[(pad*8+5)/6:len(e)-1]))
	}
	s = strings.ToLower(s)
	for _, f := range forms {
		if strings.Contains(s, f) {
			return f
		}
	}
	return ""
}

func mustNotLeak(t *testing.T, what string, s string) {
	t.Helper()
	if f := leak(s); f != "" {
		t.Errorf("%s holds the secret (as %q): %.300s", what, f, s)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	if leak(secret) == "" || leak(base64.StdEncoding.EncodeToString([]byte("\x00user\x00"+secret))) == "" || leak(fmt.Sprintf("%x", secret)) == "" {
		t.Fatal("a leak would not be seen")
	}
	r := smtplb.Relay{Name: "r", Addr: "mx.example.com:587", Username: "user", Password: secret, Tags: []string{"a"}}
	c := smtplb.Config{Relays: []smtplb.Relay{r, r}}
	values := map[string]any{
		"Relay": r, "*Relay": &r, "[]Relay": []smtplb.Relay{r}, "[]*Relay": []*smtplb.Relay{&r}, "map": map[string]smtplb.Relay{"x": r},
		"struct": struct{ R smtplb.Relay }{r}, "struct of pointer": struct{ R *smtplb.Relay }{&r}, "any": []any{r, c},
		"Config": c, "*Config": &c, "struct of Config": struct{ C smtplb.Config }{c}, "error": fmt.Errorf("with %v: %v", r, c),
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%q", "%x", "%X", "%t", "%5.3v", "% x", "%#x", "%+q", "%e", "%c", "%U"} {
			got := fmt.Sprintf(verb, v)
			mustNotLeak(t, name+" as "+verb, got)
			if !strings.Contains(got, "mx.example.com") && (verb == "%v" || verb == "%+v" || verb == "%#v" || verb == "%s") && name[0] != 's' && name != "[]*Relay" {
				t.Errorf("%s as %s tells nothing: %s", name, verb, got)
			}
		}
		mustNotLeak(t, name+" in Sprint", fmt.Sprint(v)+fmt.Sprintln(v))
		if b, err := json.Marshal(v); err != nil {
			t.Errorf("%s in JSON: %v", name, err)
		} else {
			mustNotLeak(t, name+" in JSON", string(b))
		}
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(h).With("w", v).WithGroup("g").Info("m", "v", v, slog.Group("h", slog.Any("v", v)))
		}
		mustNotLeak(t, name+" in slog", b.String())
		if !strings.Contains(b.String(), "level") {
			t.Error("nothing was logged")
		}
	}
	for name, s := range map[string]string{
		"String": r.String(), "GoString": r.GoString(), "LogValue": r.LogValue().String(),
		"Config.String": c.String(), "Config.GoString": c.GoString(), "Config.LogValue": c.LogValue().String(),
	} {
		mustNotLeak(t, name, s)
		if !strings.Contains(s, "mx.example.com:587") || !strings.Contains(s, "user") {
			t.Errorf("%s tells nothing: %s", name, s)
		}
	}
}

// People put credentials where they don't belong. That is a fault, and must not be shouted into the log.
func TestSecretsInTheWrongPlace(t *testing.T) {
	for _, r := range []smtplb.Relay{
		{Addr: "user:hunter2@mx.example.com:587"},
		{Addr: "smtp://user:hunter2@mx.example.com:587"},
		{Addr: "user:hunter2@mx.example.com"},
		{Addr: "mx.example.com:587", Password: secret},
		{Addr: "mx.example.com:587", Username: "u", Password: secret + "\x00"},
		{Addr: "mx.example.com:587", Username: "u", Password: secret, TLS: smtplb.TLSNone, AuthMechanisms: []string{"NTLM"}, Weight: -1},
	} {
		_, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{r, r}})
		if err == nil {
			t.Errorf("%v is accepted", r)
			continue
		}
		mustNotLeak(t, "New's error", err.Error())
		mustNotLeak(t, "New's error as %+v", fmt.Sprintf("%+v %#v", err, err))
		mustNotLeak(t, "String", r.String())
	}
}

// Relays that repeat what they were told don't bring it into errors, receipts, hooks, statistics or the log.
func TestSecretsInReplies(t *testing.T) {
	t.Parallel()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	plain, bearer := b64("\x00user\x00"+secret), b64("user=user\x01auth=Bearer "+secret+"\x01\x01")
	for _, mechanism := range []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2", "TokenAuth"} {
		for name, script := range map[string]func(s *smtptest.Server){
			"wrong":        func(*smtptest.Server) {},
			"535 in clear": func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(535, "5.7.8 "+secret+" is not your password") },
			"535 later": func(s *smtptest.Server) {
				s.On(smtptest.AuthChallenge).Reply(535, "5.7.8 "+secret+" is not your password")
			},
			"535 in lines":        func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(535, "5.7.8 no\n5.7.8 "+secret+"\n5.7.8 bye") },
			"500 with the line":   func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(500, "5.5.1 What is AUTH PLAIN "+plain) },
			"501 with the answer": func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(501, "5.5.4 Cannot decode "+b64(secret)) },
			"501 with the token":  func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(501, "5.5.4 Cannot decode "+bearer) },
			"421 in clear":        func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(421, "4.7.0 "+secret) },
			"no reply at all":     func(s *smtptest.Server) { s.On(smtptest.Auth).Raw(secret + " is wrong\r\n") },
			"no reply in the end": func(s *smtptest.Server) { s.On(smtptest.AuthChallenge).Raw(secret + " is wrong\r\n") },
			"a bad challenge":     func(s *smtptest.Server) { s.On(smtptest.AuthChallenge).Reply(334, secret) },
			"another challenge":   func(s *smtptest.Server) { s.On(smtptest.AuthChallenge).Reply(334, b64(secret)) },
			"334 forever":         func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(334, plain) },
			"535 to another code": func(s *smtptest.Server) { s.On(smtptest.Auth).Raw("535-" + secret + "\r\n250 " + secret + "\r\n") },
		} {
			if xoauth2 := mechanism == "XOAUTH2" || mechanism == "TokenAuth"; strings.HasSuffix(name, "the line") && mechanism != "PLAIN" || strings.HasSuffix(name, "the token") && !xoauth2 {
				continue // a relay can't repeat what it was not told
			}
			t.Run(mechanism+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					var mu sync.Mutex
					var log bytes.Buffer // and what hooks saw
					note := func(v any) {
						b, _ := json.Marshal(v)
						mu.Lock()
						defer mu.Unlock()
						fmt.Fprintf(&log, "%+v %s\n", v, b)
					}
					n := smtptest.NewNetwork()
					offered := mechanism
					if offered == "TokenAuth" {
						offered = "XOAUTH2"
					}
					s := n.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithAuth("user", "another", offered))
					defer s.Close()
					script(s)
					r := smtplb.Relay{Name: "r", Addr: "r.test:587", TLSConfig: s.ClientTLS()}
					if mechanism == "TokenAuth" {
						r.Auth = smtplb.TokenAuth("user", func(_ context.Context, a smtplb.AuthRequest) (string, error) {
							note(a)
							return secret, nil
						})
					} else {
						r.Username, r.Password, r.AuthMechanisms = "user", secret, []string{mechanism}
					}
					pool, err := smtplb.New(smtplb.Config{
						Relays: []smtplb.Relay{r}, Dial: n.DialContext,
						Logger: slog.New(slog.NewJSONHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug - 4})),
						Hooks: smtplb.Hooks{
							AttemptStart: func(_ context.Context, a smtplb.AttemptInfo) func(smtplb.Attempt) {
								note(a)
								return func(a smtplb.Attempt) { note(a) }
							},
							Done:       func(_ context.Context, r *smtplb.Receipt, err error) { note(r); note(err) },
							RelayState: func(e smtplb.RelayEvent) { note(e) },
						},
					})
					if err != nil {
						t.Fatal(err)
					}
					defer pool.Close()
					receipt, err := pool.Deliver(t.Context(), envelope("x@example.com"))
					if outcomes(receipt) != "deferred" || receipt.Attempts[0].Stage != smtplb.StageAuth {
						t.Errorf("%v: %v", receipt, err)
					}
					said := fmt.Sprintf("%v\n%v %+v %+v\n%+v\n", err, receipt, *receipt, receipt.Recipients[0].Reply.Text, pool.Stats())
					for _, x := range []error{receipt.Attempts[0].Err, receipt.Recipients[0].Err()} {
						for ; x != nil; x = errors.Unwrap(x) {
							said += fmt.Sprintf("%v %+v %#v\n", x, x, x)
						}
					}
					mu.Lock()
					defer mu.Unlock()
					if !strings.Contains(log.String(), "attempt failed") {
						t.Errorf("the log is silent: %s", log.String())
					}
					mustNotLeak(t, "what came back, or went to log and hooks,", said+log.String())
				})
			})
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}
