package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Relay is one Postfix instance. Its methods are for one goroutine at a time,
// but for Stored and Queued.
type Relay struct {
	Name string
	Addr string // IP:port; the certificate is for the IP

	dir       string
	tools     *tools
	settings  string // lines of main.cf
	suspended bool
}

const poll = 20 * time.Millisecond

func (r *Relay) path(p string) string { return filepath.Join(r.dir, p) }
func (r *Relay) etc() string          { return r.path("etc") }
func (r *Relay) spool() string        { return r.path("spool") }

// Start starts Postfix and waits until it greets.
func (r *Relay) Start(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		return fmt.Errorf("start %s: %w\n%s", r.Name, err, r.logTail(5))
	}
	return nil
}

func (r *Relay) start(ctx context.Context) error {
	pids, err := r.processes()
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("already running: %d processes", len(pids))
	}
	if !isFree(r.Addr) {
		return fmt.Errorf("something else listens on %s", r.Addr)
	}
	// The first time, "postfix start" makes the queue directories. Later master
	// itself will do, which takes milliseconds instead of a second. It goes into
	// the background as soon as it is ready.
	cmd := exec.CommandContext(ctx, r.tools.master, "-w")
	if _, err := os.Stat(filepath.Join(r.spool(), "active")); err != nil {
		cmd = exec.CommandContext(ctx, r.tools.postfix, "-c", r.etc(), "start")
	}
	cmd.Env = append(os.Environ(), "MAIL_CONFIG="+r.etc())
	// A file, for the daemons would keep a pipe open.
	out, err := os.Create(r.path("log/start.out"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, said)
	}
	return r.waitGreeting(ctx)
}

func (r *Relay) waitGreeting(ctx context.Context) error {
	for {
		err := r.greets(ctx)
		if err == nil {
			return nil
		}
		if werr := wait(ctx); werr != nil {
			return errors.Join(werr, err)
		}
	}
}

func (r *Relay) greets(ctx context.Context) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", r.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	b := make([]byte, 512)
	n, err := c.Read(b)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(b[:n]), "220 ") {
		return fmt.Errorf("greeted with %q", b[:n])
	}
	_, err = c.Write([]byte("QUIT\r\n"))
	return err
}

// Stop stops Postfix in an orderly way.
func (r *Relay) Stop(ctx context.Context) error {
	if r.suspended {
		if err := r.Resume(); err != nil {
			return err
		}
	}
	pid, err := r.master()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", r.Name, err)
	}
	return r.waitGone(ctx)
}

// Kill9 kills all processes of the relay at once, as a power cut would: they
// get no chance to finish anything. The relay's files stay as they are. It
// doesn't wait for the processes to be gone; Restart does.
func (r *Relay) Kill9() error {
	if err := r.signal(syscall.SIGKILL); err != nil {
		return err
	}
	r.suspended = false
	return nil
}

// KillMaster kills the master process alone. Its orphans may live on and keep
// the listening socket without ever serving it.
func (r *Relay) KillMaster() error {
	pid, err := r.master()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("%s: kill master: %w", r.Name, err)
	}
	for r.owns(pid) {
		time.Sleep(poll)
	}
	return nil
}

// Restart starts the relay after Kill9 or KillMaster, whose orphans it kills
// first.
func (r *Relay) Restart(ctx context.Context) error {
	if err := r.killAll(ctx); err != nil {
		return err
	}
	return r.Start(ctx)
}

// Suspend stops all processes of the relay with SIGSTOP: the kernel still
// accepts connections and data, and nobody answers.
func (r *Relay) Suspend() error {
	if err := r.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	r.suspended = true
	return nil
}

// Resume ends Suspend.
func (r *Relay) Resume() error {
	if err := r.signal(syscall.SIGCONT); err != nil {
		return err
	}
	r.suspended = false
	return nil
}

// Queued returns the number of messages that the relay took over and did not
// deliver yet.
func (r *Relay) Queued() (int, error) {
	n := 0
	// In the order in which a message wanders: one that moves on is counted twice
	// rather than not at all.
	for _, q := range []string{"maildrop", "incoming", "active", "deferred"} {
		err := filepath.WalkDir(filepath.Join(r.spool(), q), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return ignoreGone(err)
			}
			info, err := e.Info()
			// Complete queue files are executable. Others were never acknowledged to
			// the client; a killed cleanup(8) leaves them behind.
			if err == nil && info.Mode()&0o100 != 0 {
				n++
			}
			return ignoreGone(err)
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// WaitDrained waits until the relay's queue is empty.
func (r *Relay) WaitDrained(ctx context.Context) error {
	// A deferred message that goes back to the beginning can escape one count.
	for empty := 0; empty < 3; empty++ {
		n, err := r.Queued()
		if err != nil {
			return err
		}
		if n > 0 {
			empty = -1
		}
		if err := wait(ctx); err != nil {
			return fmt.Errorf("%s has %d messages in its queue: %w", r.Name, n, err)
		}
	}
	return nil
}

// shutdown is for the end of the test, whatever state the relay is in.
func (r *Relay) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if pids, err := r.processes(); err == nil && len(pids) == 0 {
		return nil
	}
	if err := r.Stop(ctx); err != nil {
		return r.killAll(context.WithoutCancel(ctx))
	}
	return nil
}

// master returns the process ID of Postfix's master, which leads the group of
// all its daemons.
func (r *Relay) master() (int, error) {
	b, err := os.ReadFile(filepath.Join(r.spool(), "pid/master.pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s: master.pid holds %q", r.Name, b)
	}
	// The file outlives a killed master, and the kernel reuses numbers.
	if !r.owns(pid) {
		return 0, fmt.Errorf("%s is not running", r.Name)
	}
	return pid, nil
}

func (r *Relay) signal(sig syscall.Signal) error {
	pid, err := r.master()
	if err != nil {
		return err
	}
	if err := syscall.Kill(-pid, sig); err != nil {
		return fmt.Errorf("%s: %v: %w", r.Name, sig, err)
	}
	return nil
}

// killAll kills the relay's processes one by one.
func (r *Relay) killAll(ctx context.Context) error {
	pids, err := r.processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("%s: kill %d: %w", r.Name, pid, err)
		}
	}
	r.suspended = false
	return r.waitGone(ctx)
}

func (r *Relay) waitGone(ctx context.Context) error {
	for {
		pids, err := r.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := wait(ctx); err != nil {
			return fmt.Errorf("%s: %d processes are still there: %w", r.Name, len(pids), err)
		}
	}
}

// processes returns the relay's processes: all those in its queue directory,
// where each daemon of Postfix works. A zombie is in no directory and so doesn't
// count; where nobody reaps orphans quickly, there may be some for a while.
func (r *Relay) processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && r.owns(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (r *Relay) owns(pid int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && cwd == r.spool()
}

// Log returns what Postfix has logged so far.
func (r *Relay) Log() (string, error) {
	b, err := os.ReadFile(r.path("log/mail.log"))
	return string(b), err
}

func (r *Relay) logTail(lines int) string {
	log, err := r.Log()
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// wait waits a moment, or returns why ctx ended.
func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(poll):
		return nil
	}
}
