package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// findSMTPSink finds Postfix's smtp-sink, which is often outside PATH.
func findSMTPSink() (string, error) {
	if p, err := exec.LookPath("smtp-sink"); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/lib/postfix/sbin", "/usr/libexec/postfix"} {
		if p, err := exec.LookPath(filepath.Join(dir, "smtp-sink")); err == nil {
			return p, nil
		}
	}
	return "", &absentError{"Postfix's smtp-sink is not installed"}
}

// startSMTPSink starts it on a free port. It counts only for a terminal to be read by people, at a price: so what was lost on the way would show in a missing reply
// alone, as it does with any server.
func startSMTPSink() (*target, error) {
	program, err := findSMTPSink()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	_, port, err := hostPort(addr)
	if err != nil {
		return nil, err
	}
	var args []string
	if os.Geteuid() == 0 { // root must name a user
		args = append(args, "-u", "nobody")
	}
	args = append(args, "inet:127.0.0.1:"+strconv.Itoa(port), "256")
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := &target{addr: addr, stop: func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}}
	if err := awaitListener(addr); err != nil {
		t.stop()
		return nil, fmt.Errorf("smtp-sink: %w", err)
	}
	return t, nil
}

func awaitListener(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
