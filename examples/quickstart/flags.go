package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/mail"
	"strings"
	"time"

	"github.com/smtplb/smtplb"
)

const (
	exitBad         = 1   // demo: something was lost or duplicated; own mail: a recipient was not accepted
	exitUsage       = 2   // also: could not begin
	exitInterrupted = 130 // demo: Ctrl-C, and nothing lost or duplicated so far
)

const usageLine = "usage: quickstart                                                    three relays and 3,000 messages inside this process\n" +
	"       quickstart -relay URL [-relay URL ...] -eml DIR [-to ADDR ...]   your own messages through your own relays; -h tells more\n"

// options are the command line. Without relays it is the demo.
type options struct {
	relays     []smtplb.Relay
	dir        string
	to         []string
	from       string
	timeout    time.Duration
	goroutines int
}

// run is main with its surroundings passed in. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseArgs(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "quickstart: %v\n%s", err, usageLine)
		return exitUsage
	case len(o.relays) > 0:
		return ownMail(ctx, o, stdout, stderr)
	}
	relays := startRelays()
	defer func() {
		for _, r := range relays {
			r.Close()
		}
	}()
	const total = 3000
	report, err := demo(ctx, relays, total, stdout, newProgress(stderr, total))
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "quickstart: %v\n", err)
		return exitUsage
	case report.lost > 0 || report.duplicated > 0:
		return exitBad
	case ctx.Err() != nil:
		return exitInterrupted
	}
	return 0
}

// parseArgs reads the command line. No error repeats a relay's URL as it stands there, with the password.
func parseArgs(args []string, help io.Writer) (*options, error) {
	var o options
	var urls []string
	list := func(l *[]string) func(string) error {
		return func(v string) error { *l = append(*l, v); return nil }
	}
	fs := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Func("relay", "a `URL` such as smtp://user:pass@mx1.example.com:587?weight=3 (STARTTLS) or smtps://… (TLS from the first byte); repeatable", list(&urls))
	fs.StringVar(&o.dir, "eml", "", "a folder `DIR`: all its *.eml files are sent, without their Bcc fields")
	fs.Func("to", "an address `ADDR` that every message goes to, in place of those in its To, Cc and Bcc; repeatable", list(&o.to))
	fs.StringVar(&o.from, "from", "", `the sender's address `+"`ADDR`"+`, or "<>" for none; default: that of the From field`)
	o.timeout = time.Minute
	fs.Func("timeout", "how `LONG` a message may take, such as 90s; default 1m", func(v string) (err error) {
		o.timeout, err = time.ParseDuration(v)
		return err
	})
	fs.IntVar(&o.goroutines, "n", 8, "how many messages are sent at the same time")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(help, usageLine)
			fs.SetOutput(help)
			fs.PrintDefaults()
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, errors.New("there is an argument that belongs to no flag (each relay needs its own -relay, each recipient its own -to)")
	}
	given := ""
	fs.Visit(func(f *flag.Flag) { given = f.Name })
	switch {
	case given == "":
		return &o, nil
	case len(urls) == 0 && o.dir == "":
		return nil, fmt.Errorf("-%s is for your own mail: -relay URL and -eml DIR are missing", given)
	case len(urls) == 0:
		return nil, errors.New("-relay URL is missing: the relay to send the messages of -eml through")
	case o.dir == "":
		return nil, errors.New("-eml DIR is missing: the folder with the messages to send through -relay")
	case o.timeout <= 0:
		return nil, fmt.Errorf("-timeout is %v; it must be more than 0", o.timeout)
	case o.goroutines < 1:
		return nil, fmt.Errorf("-n is %d; it must be 1 or more", o.goroutines)
	}
	for _, u := range urls {
		r, err := smtplb.ParseRelay(u)
		if err != nil {
			return nil, fmt.Errorf("-relay: %s", strings.TrimPrefix(err.Error(), "smtplb: "))
		}
		o.relays = append(o.relays, r)
	}
	for i, to := range o.to {
		a, err := mail.ParseAddress(to)
		if err != nil {
			return nil, fmt.Errorf("-to %q: %s", to, strings.TrimPrefix(err.Error(), "mail: "))
		}
		o.to[i] = bare(a)
	}
	if o.from != "" && o.from != "<>" {
		a, err := mail.ParseAddress(o.from)
		if err != nil {
			return nil, fmt.Errorf("-from %q: %s", o.from, strings.TrimPrefix(err.Error(), "mail: "))
		}
		o.from = bare(a)
	}
	return &o, nil
}
