package smtplb_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var updateDocs = flag.Bool("update", false, "write the documents that are generated from tables, instead of comparing them")

// TestFailuresDocument holds docs/failures.md against the tables that it is generated from.
func TestFailuresDocument(t *testing.T) {
	const name = "docs/failures.md"
	want := failuresDocument()
	if *updateDocs {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the tables say: go test -run %s -update .", name, t.Name())
	}
}

// TestFailureTableIsWhole looks for cells that are missing, or that are there twice or not in the table's language.
func TestFailureTableIsWhole(t *testing.T) {
	seen := map[string]int{}
	for _, r := range failureTable {
		seen[r.stage+" "+r.fault]++
		for _, s := range append(slices.Collect(maps.Values(r.but)), r.fresh, r.reused) {
			if s != "" && !strings.HasPrefix(s, "– ") {
				inWords(s) // which panics
			}
		}
	}
	for _, s := range matrixStages {
		for _, f := range matrixFaults {
			if n := seen[s.name+" "+f.name]; n != 1 {
				t.Errorf("%s, %s: %d rows", s.name, f.name, n)
			}
		}
	}
	if len(seen) != len(matrixStages)*len(matrixFaults) {
		t.Errorf("%d rows, want %d", len(seen), len(matrixStages)*len(matrixFaults))
	}
}

var (
	moveWords = map[string]string{
		"F": "another relay tries", "Fr": "another relay tries; `Failed` if every relay refuses like this", "P": "`Failed`", "D": "`Deferred`; the retry goes to the same relay",
		"A": "`Unknown`", "R": "the same relay tries on a new connection, free of charge", "I": "settled before",
		"L": "another relay tries, unless it is known to take no larger messages; `Failed` if there is none", "G": "the same relay in another transaction, once it has taken others; else another relay tries",
	}
	blameWords = map[string]string{"=": "an answer", "+": "a **fault**", ".": "nothing", "!": "**opens the breaker at once**", "~": "a wish for less mail"}
	connWords  = map[string]string{"K": "kept", "X": "closed"}
)

// inWords are the three columns of a cell.
func inWords(s string) (columns [3]string) {
	f := strings.Fields(s)
	if len(f) != 3 || moveWords[f[0]] == "" || blameWords[f[1]] == "" || connWords[f[2]] == "" {
		panic(fmt.Sprintf("the table says %q", s))
	}
	return [3]string{moveWords[f[0]], blameWords[f[1]], connWords[f[2]]}
}

// inOneLine is a cell as an exception: what it has in common with the rule is left out.
func inOneLine(s, rule string) string {
	c, r := inWords(s), inWords(rule)
	var parts []string
	if c[0] != r[0] {
		parts = append(parts, c[0])
	}
	if c[1] != r[1] {
		parts = append(parts, "counts as "+strings.ReplaceAll(c[1], "nothing", "nothing at all"))
	}
	if c[2] != r[2] {
		parts = append(parts, "connection "+c[2])
	}
	return strings.Join(parts, ", ")
}

var exceptionWords = map[string]string{
	"rider": "envelope behind another message", "driver": "another envelope behind it", "bdat": "BDAT", "stepwise": "no PIPELINING", "pipelined": "PIPELINING",
	"plain": "plain text", "starttls": "STARTTLS", "implicit": "implicit TLS",
}

func failuresDocument() string {
	var b strings.Builder
	b.WriteString(docIntro)
	for _, m := range matrixModes {
		fmt.Fprintf(&b, "- %s.\n", m.what)
	}
	b.WriteString("\n## By stage and fault\n\n")
	for _, f := range matrixFaults {
		fmt.Fprintf(&b, "- *%s*: %s.\n", f.name, f.what)
	}
	for _, stage := range matrixStages {
		fmt.Fprintf(&b, "\n### %s\n\n", stage.title)
		if stage.what != "" {
			b.WriteString(stage.what + "\n\n")
		}
		docStage(&b, stage.name)
		docNotes(&b, stage.name)
	}
	b.WriteString(docReplies)
	for _, head := range []string{"fault of", "reply, for example", "AUTH", "MAIL", "RCPT", "DATA", "after the message"} {
		b.WriteString("| " + head + " ")
	}
	b.WriteString("|\n|---|---|---|---|---|---|---|\n")
	for _, r := range replyTable {
		fmt.Fprintf(&b, "| %s | `%s` ", r.about, r.reply)
		for i, cell := range []string{r.auth, r.mail, r.rcpt, r.data, r.final} {
			if cell == "" {
				cell = asClass([]string{"auth", "mail", "rcpt", "data", "final"}[i], r.reply)
			}
			b.WriteString("| " + replyCell(cell) + " ")
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// replyCell is a cell of the table of replies.
func replyCell(s string) string {
	f := strings.Fields(s)
	text := map[string]string{"F": "next relay", "Fr": "next relay †", "P": "`Failed`", "D": "`Deferred`", "L": "a larger relay †", "G": "again"}[f[0]]
	text += map[string]string{"=": "", "+": ", fault", "!": ", **open**", "~": ", less"}[f[1]]
	if f[2] == "X" {
		text += ", ✕"
	}
	return text
}

// docStage writes the rows of failureTable that are about a stage. Those that say the same are one row.
func docStage(b *strings.Builder, stage string) {
	type group struct {
		faults []string
		row    failureRow
	}
	var groups []group
	never := map[string][]string{} // faults, by the reason why they can't be
	var reasons []string
	note := func(reason, what string) {
		reason = strings.TrimPrefix(reason, "– ")
		if never[reason] == nil {
			reasons = append(reasons, reason)
		}
		if !slices.Contains(never[reason], what) {
			never[reason] = append(never[reason], what)
		}
	}
	for _, r := range failureTable {
		if r.stage != stage {
			continue
		}
		// What can't be goes below the table.
		all := strings.HasPrefix(r.fresh, "– ") && (r.reused == "" || strings.HasPrefix(r.reused, "– "))
		if strings.HasPrefix(r.fresh, "– ") {
			what := r.fault
			if !all {
				what = "a new connection"
			}
			note(r.fresh, what)
		}
		if strings.HasPrefix(r.reused, "– ") {
			note(r.reused, "a connection that is used again")
		}
		for _, k := range slices.Sorted(maps.Keys(r.but)) {
			if s := r.but[k]; strings.HasPrefix(s, "– ") {
				what := exceptionWords[k]
				if k == "plain" || k == "starttls" || k == "implicit" {
					what = r.fault + " with " + what
					if stage == "tls" || stage == "starttls" {
						what = exceptionWords[k]
					}
				}
				note(s, what)
			}
		}
		if all {
			continue
		}
		same := func(g group) bool {
			return shown(g.row) == shown(r)
		}
		if i := slices.IndexFunc(groups, same); i >= 0 {
			groups[i].faults = append(groups[i].faults, r.fault)
		} else {
			groups = append(groups, group{[]string{r.fault}, r})
		}
	}
	if (cell{stage: stage}).before("mail") {
		note(ridesOnOpen, exceptionWords["rider"])
		note(notYetRidden, exceptionWords["driver"])
	}
	b.WriteString("| fault | recipients | counts as | connection | but |\n|---|---|---|---|---|\n")
	for _, g := range groups {
		rule, buts := shownParts(g.row)
		w := inWords(rule)
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", strings.Join(g.faults, ", "), w[0], w[1], w[2], strings.Join(buts, "; "))
	}
	if len(reasons) > 0 {
		var list []string
		for _, r := range reasons {
			list = append(list, fmt.Sprintf("%s (%s)", strings.Join(never[r], ", "), r))
		}
		fmt.Fprintf(b, "\nCan't be: %s.\n", strings.Join(list, "; "))
	}
}

func shown(r failureRow) string {
	rule, buts := shownParts(r)
	return rule + "|" + strings.Join(buts, "|")
}

// shownParts are the rule of a row, and its exceptions in words.
func shownParts(r failureRow) (rule string, buts []string) {
	rule = r.fresh
	if strings.HasPrefix(rule, "– ") {
		rule = r.reused
	} else if r.reused != "" && !strings.HasPrefix(r.reused, "– ") && r.reused != rule {
		buts = append(buts, "used before: "+inOneLine(r.reused, rule))
	}
	for _, m := range matrixModes {
		if s, ok := r.but[m.name]; ok && !strings.HasPrefix(s, "– ") {
			buts = append(buts, exceptionWords[m.name]+": "+inOneLine(s, rule))
		}
	}
	return rule, buts
}

// docNotes writes the rows of noteTable that are about a stage.
func docNotes(b *strings.Builder, stage string) {
	first := true
	for _, n := range noteTable {
		if n.stage != stage {
			continue
		}
		if first {
			b.WriteString("\n| in particular | recipients | counts as | connection | but |\n|---|---|---|---|---|\n")
			first = false
		}
		rule := n.plain
		var buts []string
		if rule == "" {
			rule = n.tls
		} else if n.tls != "" {
			buts = append(buts, "TLS: "+inOneLine(n.tls, rule))
		}
		if n.direct != "" && n.direct != n.tls {
			buts[0] = strings.Replace(buts[0], "TLS", "STARTTLS", 1)
		}
		if n.modes != "" {
			buts = append(buts, "only with "+exceptionWords[n.modes])
		}
		if n.reused {
			buts = append(buts, "only where it was used before")
		}
		w := inWords(rule)
		if strings.HasPrefix(rule, "I ") {
			w[0] = "`Accepted`"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", n.what, w[0], w[1], w[2], strings.Join(buts, "; "))
	}
}

const docIntro = "# When a relay fails\n\n" +
	"*This page is generated from the tables in failures_table_test.go and failures_notes_test.go. Each of its cells is a test, with new and with used connections, in plain text, with STARTTLS and with implicit TLS, " +
	"with another relay and without. To change it, change the tables and run `go test -run TestFailuresDocument -update .`*\n" + `
## What the columns mean

**Recipients** says what becomes of those whose fate wasn't settled before the relay failed. Who was refused with a 5xx before has failed, and who was accepted in an earlier transaction stays accepted.

- *Another relay tries*: it is certain that this one has not accepted the message. Where no other relay is left the recipient is ` + "`Deferred`" + `, and may be sent again after ` + "`RetryAfter`" + `.
  Where the refusal is the relay's policy, and every relay that could be asked refuses for good, it has ` + "`Failed`" + `.
- ` + "`Failed`" + `: a permanent refusal of the recipient or the message, which no other relay would change.
- ` + "`Unknown`" + `: the message was sent whole, and no answer came that could be read. The relay may have it. No other relay is tried, unless ` + "`Envelope.AtLeastOnce`" + ` says so.
- *The same relay tries on a new connection, free of charge*: the relay had closed an idle connection, as it may at any time. This is no attempt and no fault; ` + "`Attempt.Redialed`" + ` tells of it.

` + "`Accepted`" + ` comes from nothing but a 2xx to the whole message.

**Counts as** says what the relay's circuit breaker makes of it.

- *An answer*: the relay does its work, whatever it says. Refused recipients and messages never count against a relay.
- *A fault*: five in a row open the breaker, or half of what went over the relay within a minute; it is then left alone for a while (` + "`Breaker`" + ` has the figures).
- *Opens the breaker at once*: what doesn't pass by itself and does harm when it is tried again, such as a refused login or a certificate that isn't accepted. The relay is left alone for five minutes and longer.
- *A wish for less mail*: it isn't counted, but for 10 s the relay is used only where no other one is left.
- *Nothing*: it says nothing about the relay.

What the caller does never counts: a cancelled context is ` + "`Deferred`" + ` before the end of the message was sent, and ` + "`Unknown`" + ` after it, when the relay has not answered for 5 s more.

**Connection** says whether the next message may use the same one. A connection that is closed within a message is cut, without a dot, QUIT or close_notify, so that no relay can take half of a message for a whole one.

**But** holds what is different on a connection that has carried a message before, and with the ways in which a message goes over the wire:

`

const docReplies = `
## By what the reply says

The enhanced code (RFC 3463) goes before the basic code, and that before the words. A reply that isn't here means what its first digit means above. *✕*: the connection is closed. *†*: ` + "`Failed`" + ` where every relay refuses for good.
*Again*: in another transaction on the same connection, once the relay has taken others in this one; else the next relay. *Less*: a wish for less mail. *Fault*: it counts against the relay. ***Open***: the breaker opens at once.
Within the message a reply means what it means after it, but the connection is closed. A relay that refuses this sender is left alone with the sender's domain for 10 minutes, where there is another one. A 421 that is the first reply on a connection that was used before says no more than that the connection was stale.

`
