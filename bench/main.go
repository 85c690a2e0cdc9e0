// Command bench lets smtplb and its peers do the same work side by side, in rounds in which each client has its turn, and reports rate and CPU time as multiples of what net/smtp
// does on a kept connection in the same round. Absolute figures swing with the machine; ratios within a round hold.
//
// The clients are net/smtp (a connection for each message, and kept), go-mail (DialAndSend, kept, kept without NOOP and RSET), the pools of jordan-wright/email ("email") and
// smtppool, go-smtp's client, nodemailer's pool in a process of node, smtplb three ways (b: no message rides behind another; c: more callers than connections; DeliverAll),
// and bounds: loops that write prepared bytes and read replies, which is what the protocol allows, and one of them with what any client owes its callers.
//
// The sink runs in a process of its own, counts what it is given, and forgets it. A turn after which the client and the sink don't agree on the number of
// messages and recipients is an error of the run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	if serveIfAsked() {
		return
	}
	if err := command(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(log)
	workList := flags.String("work", "", "comma-separated works (default all): "+strings.Join(workNames(), ", "))
	clientList := flags.String("clients", "", "comma-separated clients, or client:mode (default all): "+known(entries)+"; "+base.String()+" always takes part")
	rounds := flags.Int("rounds", 7, "rounds of each work; half as many over a slow line")
	asJSON := flags.Bool("json", false, "write an object a line")
	markdown := flags.Bool("markdown", false, "write tables for the README")
	count := flags.Int("messages", 0, "messages of a turn, in the place of its time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *rounds < 1 || *count < 0 {
		return errors.New("see -help")
	}
	names := workNames()
	if *workList != "" {
		names = strings.Split(*workList, ",")
	}
	for _, n := range names {
		if !slices.Contains(workNames(), n) {
			return fmt.Errorf("no work %q; there are %s", n, strings.Join(workNames(), ", "))
		}
	}
	clients, err := choose(*clientList)
	if err != nil {
		return err
	}
	o := options{rounds: *rounds, count: *count, log: log}
	var all []result
	var errs []error
	for _, n := range names {
		fmt.Fprintf(log, "%s: %s\n", n, about(n))
		rows, err := runNamed(n, clients, o)
		errs = append(errs, err)
		all = append(all, rows...)
		switch {
		case len(rows) == 0 || *markdown:
		case *asJSON:
			errs = append(errs, writeJSON(out, rows))
		default:
			errs = append(errs, writeText(out, about(n), rows))
		}
	}
	if *markdown {
		errs = append(errs, writeMarkdown(out, all, about))
	}
	return errors.Join(errs...)
}

func workNames() []string {
	var names []string
	for i := range works {
		names = append(names, works[i].name)
	}
	return append(names, idleWork)
}

func find(name string) *work {
	for i := range works {
		if works[i].name == name {
			return &works[i]
		}
	}
	return nil
}

func about(name string) string {
	if w := find(name); w != nil {
		return w.about
	}
	return fmt.Sprintf("%d idle connections that sent a message each", idleConns)
}

func runNamed(name string, clients []entry, o options) ([]result, error) {
	if name == idleWork {
		return idleMemory(idleConns)
	}
	return find(name).run(context.Background(), clients, o)
}
