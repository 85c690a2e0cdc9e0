package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"text/template"
	"time"
)

//go:embed haproxy.cfg.tmpl
var haproxyCfg string

// HAProxy runs HAProxy in TCP mode in front of the servers, IP:port each, until
// the test ends, and returns where it listens. balance is its algorithm,
// "leastconn" say. It checks the servers by SMTP (option smtpchk) at its default
// intervals.
func HAProxy(tb testing.TB, balance string, servers []string) (addr string) {
	tb.Helper()
	path, err := lookPath("haproxy")
	if err != nil {
		tb.Fatalf("%v: run `make e2e` in the root of the repository as root on Debian or a relative, "+
			"which installs what these tests need", err)
	}
	addr = freeAddr(tb)
	var cfg bytes.Buffer
	values := map[string]any{"Addr": addr, "Balance": balance, "Servers": servers}
	if err := template.Must(template.New("haproxy.cfg").Parse(haproxyCfg)).Execute(&cfg, values); err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(tb.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, cfg.Bytes(), 0o644); err != nil {
		tb.Fatal(err)
	}
	var out bytes.Buffer // read after Wait alone
	cmd := exec.Command(path, "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	gone := make(chan struct{})
	var ended error // for use when gone is closed
	go func() { defer close(gone); ended = cmd.Wait() }()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill() // an error: it has ended already
		<-gone
		if tb.Failed() {
			tb.Logf("haproxy said: %s", out.Bytes())
		}
	})
	for end := time.Now().Add(startTimeout); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
			return addr
		}
		select {
		case <-gone:
			tb.Fatalf("haproxy: %v: %s", ended, out.Bytes())
		case <-time.After(poll):
			if time.Now().After(end) {
				tb.Fatal(fmt.Errorf("haproxy doesn't listen: %w", err))
			}
		}
	}
}
