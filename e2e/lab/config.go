package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

var (
	//go:embed main.cf.tmpl
	mainCF string
	//go:embed master.cf.tmpl
	masterCF string
)

// configure writes everything that the relay's Postfix reads.
func (r *Relay) configure(ca *authority) error {
	ip, _, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return err
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
		uid  int
	}{
		{r.dir, 0o755, 0},
		{r.etc(), 0o755, 0},
		{r.path("etc/sasl"), 0o755, 0},
		{r.path("log"), 0o755, 0},
		{r.spool(), 0o755, 0},
		{r.path("data"), 0o700, r.tools.uid},
		{r.path("store"), 0o755, r.tools.uid},
	} {
		if err := os.Mkdir(d.path, d.mode); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil { // whatever the umask
			return err
		}
		if err := os.Chown(d.path, d.uid, -1); err != nil {
			return err
		}
	}

	chain, err := ca.issue(ip)
	if err != nil {
		return err
	}
	values := map[string]any{
		"Name": r.Name, "Addr": r.Addr, "Dir": r.dir,
		"Version": r.tools.version, "UID": r.tools.uid, "GID": r.tools.gid,
	}
	files := map[string][]byte{r.path("etc/chain.pem"): chain}
	for name, text := range map[string]string{"etc/main.cf": mainCF, "etc/master.cf": masterCF, "etc/sasl/smtpd.conf": saslConf} {
		var b bytes.Buffer
		if err := template.Must(template.New(name).Parse(text)).Execute(&b, values); err != nil {
			return err
		}
		files[r.path(name)] = b.Bytes()
	}
	for path, b := range files {
		mode := os.FileMode(0o644)
		if filepath.Ext(path) == ".pem" {
			mode = 0o600
		}
		if err := os.WriteFile(path, b, mode); err != nil {
			return err
		}
		// Every process of Postfix dozes over a configuration file that is younger
		// than about two seconds, and reads it again.
		old := time.Now().Add(-time.Minute)
		if err := os.Chtimes(path, old, old); err != nil {
			return err
		}
	}

	local, realm, _ := strings.Cut(Username, "@")
	db := r.path("etc/sasl/sasldb2")
	cmd := exec.Command(r.tools.saslpasswd2, "-p", "-c", "-f", db, "-u", realm, local)
	cmd.Stdin = strings.NewReader(Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("saslpasswd2: %w: %s", err, out)
	}
	return os.Chown(db, r.tools.uid, -1)
}

const saslConf = `pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {{.Dir}}/etc/sasl/sasldb2
mech_list: PLAIN LOGIN
`
