package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// nodemailer runs in a process of node's own, which is told what to send, a line of JSON at a time, and answers with what it did.

const nodeDir = "nodemailer" // within this module

type nodeOpen struct {
	Op      string   `json:"op"` // "open"
	Host    string   `json:"host"`
	Port    int      `json:"port"`
	CA      string   `json:"ca,omitempty"` // PEM; "": no TLS
	Conns   int      `json:"conns"`
	Workers int      `json:"workers"`
	From    string   `json:"from"`
	To      []string `json:"to"`
	Raw     string   `json:"raw"`
}

type nodeRun struct {
	Op    string  `json:"op"`    // "run"
	Count int     `json:"count"` // 0: as long as MS
	MS    float64 `json:"ms"`
}

type nodeAnswer struct {
	Error   string  `json:"error"`
	Sent    int     `json:"sent"`
	Elapsed float64 `json:"elapsed_ms"`
	CPU     float64 `json:"cpu_ms"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
}

type nodemailer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// nodeReady installs nodemailer once, at the version of the lock file.
var nodeReady = sync.OnceValue(func() error {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return &absentError{program + " is not installed"}
		}
	}
	if _, err := os.Stat(filepath.Join(nodeDir, "package-lock.json")); err != nil {
		return &absentError{"its folder isn't here: run the bench in its own"}
	}
	if nodeInstalled() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ci := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	ci.Dir = nodeDir
	if out, err := ci.CombinedOutput(); err != nil {
		return &absentError{fmt.Sprintf("npm ci: %v: %.300s", err, out)}
	}
	return nil
})

// nodeInstalled reports whether the wanted version is there already.
func nodeInstalled() bool {
	var wanted struct{ Dependencies map[string]string }
	var found struct{ Version string }
	for file, v := range map[string]any{"package.json": &wanted, filepath.Join("node_modules", "nodemailer", "package.json"): &found} {
		b, err := os.ReadFile(filepath.Join(nodeDir, file))
		if err != nil || json.Unmarshal(b, v) != nil {
			return false
		}
	}
	return found.Version == wanted.Dependencies["nodemailer"]
}

func openNodemailer(s *setup) (client, error) {
	if err := nodeReady(); err != nil {
		return nil, err
	}
	host, port, err := hostPort(s.to.addr)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("node", "send.cjs")
	cmd.Dir = nodeDir
	cmd.Stderr = os.Stderr
	n := &nodemailer{cmd: cmd}
	if n.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.out = json.NewDecoder(bufio.NewReader(out))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	open := nodeOpen{
		Op: "open", Host: host, Port: port, Conns: s.work.conns, Workers: s.work.workers,
		From: s.letter.from, To: s.letter.to, Raw: string(s.letter.raw),
	}
	if s.to.tls != nil {
		open.Host, open.CA = s.to.tls.ServerName, string(s.to.cert)
	}
	if _, err := n.ask(open); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *nodemailer) ask(question any) (nodeAnswer, error) {
	var a nodeAnswer
	if err := json.NewEncoder(n.in).Encode(question); err != nil {
		return a, err
	}
	if err := n.out.Decode(&a); err != nil {
		return a, fmt.Errorf("node: %w", err)
	}
	if a.Error != "" {
		return a, errors.New("nodemailer: " + a.Error)
	}
	return a, nil
}

func (n *nodemailer) turn(_ context.Context, q *quota) (turn, error) {
	a, err := n.ask(nodeRun{Op: "run", Count: q.count, MS: float64(q.length) / float64(time.Millisecond)})
	ms := func(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
	return turn{
		sent: a.Sent, elapsed: ms(a.Elapsed), cpu: ms(a.CPU), p50: a.P50, p99: a.P99,
		allocs: -1, bytes: -1,
	}, err
}

func (n *nodemailer) close() {
	n.in.Close() // it ends with its input
	_ = n.cmd.Wait()
}
