package main

import (
	"bytes"
	"fmt"
	"time"
)

// A work is what every client is given to do, in the same circumstances.
type work struct {
	name    string
	about   string
	size    int // of the message, in bytes; of the attachment in attach10m
	rcpts   int
	workers int // goroutines that send
	conns   int // connections that they have

	rtt          time.Duration
	tls          bool
	noPipelining bool
	smtpSink     bool // Postfix's, in the place of our own
	attach       bool // messages are rendered by go-mail, with an attachment
	turn         time.Duration
}

const (
	short = 280 * time.Millisecond
	kB    = 1000
)

// works are all of them but idle-memory, in the order of the report. A turn over a slow line is long enough that a client that has one message in flight
// behind another isn't measured while it gets going.
var works = []work{
	{name: "2k-c8", about: "2 KB, 8 workers, 8 connections", size: 2 * kB, rcpts: 1, workers: 8, conns: 8, turn: short},
	{name: "2k-c64", about: "2 KB, 64 workers, 64 connections", size: 2 * kB, rcpts: 1, workers: 64, conns: 64, turn: short},
	{name: "2k-c64-8conns", about: "2 KB, 64 workers share 8 connections", size: 2 * kB, rcpts: 1, workers: 64, conns: 8, turn: short},
	{name: "rtt20", about: "2 KB, one connection, 20 ms round trip", size: 2 * kB, rcpts: 1, workers: 1, conns: 1, rtt: 20 * time.Millisecond, turn: 800 * time.Millisecond},
	{name: "rtt80", about: "2 KB, one connection, 80 ms round trip", size: 2 * kB, rcpts: 1, workers: 1, conns: 1, rtt: 80 * time.Millisecond, turn: 1700 * time.Millisecond},
	{name: "rcpt50-rtt20", about: "2 KB, 50 recipients, one connection, 20 ms round trip", size: 2 * kB, rcpts: 50, workers: 1, conns: 1, rtt: 20 * time.Millisecond, turn: 900 * time.Millisecond},
	{name: "50k-c8", about: "50 KB, 8 workers, 8 connections", size: 50 * kB, rcpts: 1, workers: 8, conns: 8, turn: short},
	{name: "1m", about: "1 MB, one connection", size: 1000 * kB, rcpts: 1, workers: 1, conns: 1, turn: short},
	{name: "10m", about: "10 MB, one connection", size: 10000 * kB, rcpts: 1, workers: 1, conns: 1, turn: short},
	{name: "10m-tls", about: "10 MB, one connection, TLS", size: 10000 * kB, rcpts: 1, workers: 1, conns: 1, tls: true, turn: short},
	{name: "nopipelining", about: "2 KB, 8 workers, 8 connections, a sink without PIPELINING", size: 2 * kB, rcpts: 1, workers: 8, conns: 8, noPipelining: true, turn: short},
	{name: "smtp-sink", about: "2 KB, 8 workers, 8 connections, Postfix's smtp-sink (which isn't asked what it counted)", size: 2 * kB, rcpts: 1, workers: 8, conns: 8, smtpSink: true, turn: short},
	{name: "attach10m", about: "go-mail message with an attachment of 10 MB, one connection, rendered anew for each send", size: 10000 * kB, rcpts: 1, workers: 1, conns: 1, attach: true, turn: short},
}

// idleWork is the one that sends nothing: see idle.go.
const idleWork = "idle-memory"

// rounds: over a slow line figures hardly vary and turns are long, so half the rounds do.
func (w *work) rounds(n int) int {
	if w.rtt > 0 {
		return (n + 1) / 2
	}
	return n
}

// A letter is the message of a work, made once.
type letter struct {
	from string
	to   []string
	text []byte // the lines of its body
	raw  []byte // header and body, with CRLF
	file []byte // the attachment of attach10m
}

const subject = "What the bench sends"

func (w *work) letter() *letter {
	l := &letter{from: "a@example.com"}
	for i := range w.rcpts {
		l.to = append(l.to, fmt.Sprintf("recipient%d@example.net", i))
	}
	header := fmt.Sprintf("Date: Mon, 02 Jan 2006 15:04:05 +0000\r\nMessage-ID: <bench@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=UTF-8\r\n"+
		"Content-Transfer-Encoding: 7bit\r\nFrom: <%s>\r\nTo: <%s>\r\nSubject: %s\r\n\r\n", l.from, l.to[0], subject)
	size := w.size
	if w.attach {
		l.file = bytes.Repeat([]byte("0123456789abcdef"), w.size/16)
		size = 2 * kB
	}
	const line = "The quick brown fox jumps over the lazy dog and goes home by mail.\r\n"
	l.text = bytes.Repeat([]byte(line), max(1, (size-len(header))/len(line)))
	l.raw = append([]byte(header), l.text...)
	return l
}
