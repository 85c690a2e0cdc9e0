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
		"Settings": r.settings,
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

	if err := r.SetPassword(Username, Password); err != nil {
		return err
	}
	return os.Chown(r.saslDB(), r.tools.uid, -1)
}

func (r *Relay) saslDB() string { return r.path("etc/sasl/sasldb2") }

// SetPassword gives the relay a user, "app@lab.test" say, or changes the user's
// password, for logins from now on.
func (r *Relay) SetPassword(username, password string) error {
	local, realm, _ := strings.Cut(username, "@")
	return r.saslpasswd2(password, "-p", "-c", "-u", realm, local)
}

// RemoveUser takes a user away. Connections that have logged in go on.
func (r *Relay) RemoveUser(username string) error {
	local, realm, _ := strings.Cut(username, "@")
	return r.saslpasswd2("", "-d", "-u", realm, local)
}

func (r *Relay) saslpasswd2(stdin string, args ...string) error {
	cmd := exec.Command(r.tools.saslpasswd2, append([]string{"-f", r.saslDB()}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: saslpasswd2: %w: %s", r.Name, err, out)
	}
	return nil
}

const saslConf = `pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {{.Dir}}/etc/sasl/sasldb2
mech_list: PLAIN LOGIN
`
