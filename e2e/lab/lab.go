// Package lab runs Postfix instances on the loopback interface, for tests that
// want real mail servers: ones that can be killed, restarted and suspended, and
// whose stored mail can be counted afterwards.
//
// Every relay has its own address, queue, SASL database, log and mail store
// under one temporary directory. It offers STARTTLS and, under TLS alone, AUTH
// PLAIN and LOGIN; it takes mail for any recipient of any domain from whoever is
// authenticated, stores one file per message and recipient, and asks no DNS.
//
// It needs Debian's Postfix and Cyrus SASL, and root: see install.sh beside it.
package lab

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Username and Password are what every relay's AUTH accepts.
const (
	Username = "app@lab.test"
	Password = "a secret of 24 letters.."
)

// startTimeout bounds the start of a relay: the first one takes about a second,
// in which Postfix makes its queue directories.
const startTimeout = 30 * time.Second

// Lab is a set of running relays.
type Lab struct {
	Relays []*Relay
	Roots  *x509.CertPool // the authority that signed the relays' certificates
}

// New starts n relays, named pf1 to pfN, and stops them when the test ends. The
// test fails where Postfix isn't installed: a test that was asked for and does
// not run is a failure. With SMTPLB_E2E_KEEP in the environment, queues, logs
// and stored mail are kept, and the test's log says where.
func New(tb testing.TB, n int) *Lab {
	tb.Helper()
	return NewWith(tb, make([]string, n)...)
}

// NewWith is New with a relay for each of settings, which are lines for its main.cf
// beyond those of all relays.
func NewWith(tb testing.TB, settings ...string) *Lab {
	tb.Helper()
	tools, err := findTools()
	if err != nil {
		tb.Fatalf("%v: run `make e2e` in the root of the repository as root on Debian or a relative, "+
			"which installs what these tests need", err)
	}
	// Below /var/tmp, not in tb.TempDir: the user postfix must be able to get in.
	dir, err := os.MkdirTemp("/var/tmp", "smtplb-e2e-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if os.Getenv("SMTPLB_E2E_KEEP") != "" {
			tb.Logf("kept: %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	ca, err := newAuthority()
	if err != nil {
		tb.Fatal(err)
	}
	lab := &Lab{Roots: ca.pool()}
	for i, more := range settings {
		name := fmt.Sprintf("pf%d", i+1)
		r := &Relay{Name: name, Addr: freeAddr(tb), dir: filepath.Join(dir, name), tools: tools, settings: more}
		if err := r.configure(ca); err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
		lab.Relays = append(lab.Relays, r)
	}
	tb.Cleanup(func() {
		for _, r := range lab.Relays {
			if err := r.shutdown(); err != nil {
				tb.Error(err)
			}
			if tb.Failed() {
				tb.Logf("%s, the end of its log:\n%s", r.Name, r.logTail(15))
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := lab.each(func(r *Relay) error { return r.Start(ctx) }); err != nil {
		tb.Fatal(err)
	}
	return lab
}

// WaitDrained waits until no relay that is running has a message in its queue.
func (l *Lab) WaitDrained(ctx context.Context) error {
	return l.each(func(r *Relay) error { return r.WaitDrained(ctx) })
}

// Stored reads the mail stores of all relays.
func (l *Lab) Stored() ([]Message, error) {
	var all []Message
	for _, r := range l.Relays {
		msgs, err := r.Stored()
		if err != nil {
			return nil, err
		}
		all = append(all, msgs...)
	}
	return all, nil
}

// each runs f for all relays at once.
func (l *Lab) each(f func(*Relay) error) error {
	errs := make([]error, len(l.Relays))
	var wg sync.WaitGroup
	for i, r := range l.Relays {
		wg.Go(func() { errs[i] = f(r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tools are the programs of Postfix and Cyrus SASL.
type tools struct {
	postfix, saslpasswd2, master string
	version                      string // "3.7"
	uid, gid                     int    // of the user postfix
}

func findTools() (*tools, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the relays need root")
	}
	t := &tools{}
	var postconf string
	for name, path := range map[string]*string{"postfix": &t.postfix, "postconf": &postconf, "saslpasswd2": &t.saslpasswd2} {
		var err error
		if *path, err = lookPath(name); err != nil {
			return nil, err
		}
	}
	// Compiled-in defaults (-d), which need no configuration of the system's.
	out, err := exec.Command(postconf, "-dh", "daemon_directory", "mail_version").Output()
	if err != nil {
		return nil, fmt.Errorf("postconf: %w", err)
	}
	f := strings.Fields(string(out))
	if len(f) != 2 {
		return nil, fmt.Errorf("postconf said %q", out)
	}
	t.master = filepath.Join(f[0], "master")
	if v := strings.SplitN(f[1], ".", 3); len(v) > 1 {
		t.version = v[0] + "." + v[1]
	}
	u, err := user.Lookup("postfix")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscan(u.Uid+" "+u.Gid, &t.uid, &t.gid); err != nil {
		return nil, err
	}
	return t, nil
}

// lookPath also looks where administrators' programs are, which need not be in
// the PATH of a test.
func lookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

var lastHost atomic.Int64

// freeAddr returns an address for one relay, alone on its loopback IP. A free
// port of 127.0.0.1 would not do: while the relay is down, a client's socket
// could get that port as its own.
func freeAddr(tb testing.TB) string {
	tb.Helper()
	pid := os.Getpid()
	for range 200 {
		addr := fmt.Sprintf("127.%d.%d.%d:2525", 1+pid/250%250, 1+pid%250, lastHost.Add(1))
		if isFree(addr) {
			return addr
		}
	}
	tb.Fatal("no free loopback address for a relay")
	return ""
}

// isFree reports whether nothing listens on addr. Postfix listens with
// SO_REUSEPORT: it would start there without an error all the same, and the
// kernel would share the connections out among the two.
func isFree(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	return l.Close() == nil
}
