package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"time"
)

// The sink and the line to it run in a process of their own, which is this program once more: so the CPU time and the memory of this process are the client's.

// serveEnv holds the serverOptions where this process is to be the server.
const serveEnv = "SMTPLB_BENCH_SERVE"

type serverOptions struct {
	Sink sinkOptions
	RTT  time.Duration // of the line to the sink; 0: none
}

// greeting is the first line that the server process writes.
type greeting struct {
	Addr string
	Cert []byte // PEM
}

// A target is what a work's clients send to.
type target struct {
	addr string
	cert []byte      // PEM; its names are localhost and 127.0.0.1
	tls  *tls.Config // of a client, where the work is over TLS

	count func() (tally, error) // nil where the target doesn't count
	stop  func()
}

// startServer starts the other process.
func startServer(o serverOptions) (*target, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	opts, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), serveEnv+"="+string(opts))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() {
		in.Close()
		_ = cmd.Wait()
	}
	answers := json.NewDecoder(bufio.NewReader(out))
	var g greeting
	if err := answers.Decode(&g); err != nil {
		stop()
		return nil, fmt.Errorf("the sink's process: %w", err)
	}
	t := &target{addr: g.Addr, cert: g.Cert, stop: stop}
	t.count = func() (n tally, err error) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return n, err
		}
		err = answers.Decode(&n)
		return n, err
	}
	if o.Sink.TLS {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(g.Cert)
		t.tls = &tls.Config{RootCAs: roots, ServerName: "localhost"}
	}
	return t, nil
}

// serveIfAsked makes this process the server if it was started as one, and reports whether it was.
func serveIfAsked() bool {
	opts, ok := os.LookupEnv(serveEnv)
	if !ok {
		return false
	}
	if err := serve(opts, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sink:", err)
		os.Exit(1)
	}
	return true
}

// serve answers each line of in with the tally so far, until in ends.
func serve(opts string, in io.Reader, out io.Writer) error {
	var o serverOptions
	if err := json.Unmarshal([]byte(opts), &o); err != nil {
		return err
	}
	config, cert, err := selfSigned()
	if err != nil {
		return err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	s := newSink(o.Sink, config)
	go s.serve(l)
	addr := l.Addr().String()
	if o.RTT > 0 {
		line, err := listen.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer line.Close()
		go serveDelayed(line, func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }, o.RTT)
		addr = line.Addr().String()
	}
	answer := json.NewEncoder(out)
	if err := answer.Encode(greeting{addr, cert}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if err := answer.Encode(s.tally()); err != nil {
			return err
		}
	}
	return nil
}

// selfSigned makes a certificate for this machine's loopback, and the same in PEM.
func selfSigned() (*tls.Config, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		return nil, nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, text.Bytes(), nil
}
