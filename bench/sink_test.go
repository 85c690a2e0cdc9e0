package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// session writes the pieces to a sink, one after the other, and returns all that it answered and what it counted.
func session(t *testing.T, o sinkOptions, pieces ...string) (string, tally) {
	t.Helper()
	s := newSink(o, nil)
	client, server := net.Pipe()
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // a sink that misses the end of a message hears no QUIT
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- s.converse(server)
		server.Close()
	}()
	said := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(client)
		client.Close()
		said <- string(b)
	}()
	for _, p := range pieces {
		if _, err := io.WriteString(client, p); err != nil {
			t.Fatalf("writing %q: %v", p, err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatalf("the sink: %v", err)
	}
	return <-said, s.tally()
}

// TestSinkEverySplit sends a conversation in two pieces, cut at every byte: envelopes behind a body in one write, dots at the beginning of lines, a message without
// a line, chunks.
func TestSinkEverySplit(t *testing.T) {
	const envelope = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n"
	all := "EHLO client\r\n" + envelope +
		"Subject: x\r\n\r\n..\r\nMAIL FROM:<nobody@example.com>\r\n.\r\n" + envelope + // no command, that line
		".\r\n" +
		"RCPT TO:<nobody@example.com>\r\nRSET\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT 8\r\n\r\n.\r\nQU\nBDAT 3 LAST\r\nIT\n" +
		"DATA\r\nNOOP\r\nQUIT\r\n"
	const ok = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
	const queued = "250 2.0.0 Ok: queued as 4Zk3vB0Xyz\r\n"
	want := "220 sink ESMTP\r\n250-sink\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-PIPELINING\r\n250 SIZE 0\r\n" +
		ok + queued + ok + queued +
		"250 2.1.5 Ok\r\n250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok\r\n" + queued +
		"503 5.5.1 No recipients\r\n250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n"
	check := func(pieces ...string) {
		t.Helper()
		said, n := session(t, sinkOptions{}, pieces...)
		if said != want {
			t.Fatalf("to %q the sink said\n%q, want\n%q", pieces, said, want)
		}
		if n != (tally{Messages: 3, Recipients: 5}) {
			t.Fatalf("after %q the sink counts %+v", pieces, n)
		}
	}
	for i := range len(all) {
		check(all[:i], all[i:])
	}
	check(strings.Split(all, "")...)
}

// TestSinkLargeMessage: one larger than every buffer, full of beginnings of its end.
func TestSinkLargeMessage(t *testing.T) {
	body := strings.Repeat("\r\n..\r\n.", 400_000)
	said, n := session(t, sinkOptions{}, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n", body, "\r\n.\r\nQUIT\r\n")
	if n != (tally{1, 1}) || !strings.HasSuffix(said, "221 2.0.0 Bye\r\n") {
		t.Errorf("%+v, %q", n, said)
	}
}

func TestSinkWithoutPipelining(t *testing.T) {
	if said, _ := session(t, sinkOptions{NoPipelining: true}, "EHLO x\r\nQUIT\r\n"); strings.Contains(said, "PIPELINING") {
		t.Errorf("it offers %q", said)
	}
}

// TestSinkStartTLS: offered once, and nothing from before it counts.
func TestSinkStartTLS(t *testing.T) {
	to, err := startServer(serverOptions{Sink: sinkOptions{TLS: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer to.stop()
	c, err := dialNetSMTP(&setup{to: to})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if ok, _ := c.Extension("STARTTLS"); ok {
		t.Error("STARTTLS is offered over TLS")
	}
	conn, err := net.Dial("tcp", to.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "EHLO x\r\nSTARTTLS\r\nNOOP\r\n"); err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(bufio.NewReader(conn))
	if bytes.Contains(said, []byte("Go ahead")) {
		t.Errorf("it began TLS with a command behind STARTTLS: %q", said)
	}
}
