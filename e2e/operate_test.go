package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/e2e/lab"
)

// TestDrain takes one relay of three out of service under load, and puts it
// back. No send fails. No message that is sent after SetAdmin has returned goes to
// it, its connections end with QUIT, and it gets its share back little by little.
func TestDrain(t *testing.T) {
	const slowStart = 10 * time.Second
	l := lab.New(t, 3)
	victim := l.Relays[1]
	pool, err := smtplb.New(smtplb.Config{Relays: relays(l), Health: smtplb.Health{SlowStart: slowStart}})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	skip := logSize(t, victim)
	tr := begin(t, pool, 90, 20*time.Second)
	time.Sleep(3 * time.Second)
	if err := pool.SetAdmin(victim.Name, smtplb.AdminDrain); err != nil {
		t.Fatal(err)
	}
	drained := time.Now()
	eventually(t, "no connection to the drained relay is left", func() bool {
		s := pool.Stats().Relays[1]
		return s.State == "drain" && s.InFlight == 0 && s.Idle == 0
	})
	quiet := time.Since(drained)
	// Postfix's log is a little behind.
	var connects, disconnects []string
	eventually(t, "the drained relay's log has the end of each connection", func() bool {
		connects = logged(t, victim, skip, ": connect from")
		disconnects = logged(t, victim, skip, ": disconnect from")
		return len(connects) == len(disconnects)
	})
	messages := len(logged(t, victim, skip, ": client="))
	time.Sleep(time.Until(drained.Add(4 * time.Second)))
	before := time.Now()
	if n := len(logged(t, victim, skip, ": client=")); n != messages || n == 0 {
		t.Errorf("the drained relay's log has %d messages when its connections are gone, and %d at the end of the drain", messages, n)
	}
	if err := pool.SetAdmin(victim.Name, smtplb.AdminReady); err != nil {
		t.Fatal(err)
	}
	ready := time.Now()
	time.Sleep(slowStart + 3*time.Second)
	tr.end(t, l, [2]time.Time{})
	tr.nobodyFailed(t)

	for _, p := range tr.between(drained, before) {
		if p.touched(victim.Name) {
			t.Errorf("%s began %v after the drain, and went to the drained relay: %v", p.env.ID, p.start.Sub(drained), p.receipt.Attempts)
		}
	}
	if len(connects) == 0 {
		t.Error("the drained relay's log has no connection")
	}
	for _, line := range disconnects {
		if !strings.Contains(line, " quit=1 ") {
			t.Errorf("no QUIT: %s", line)
		}
	}
	if lost := logged(t, victim, skip, "lost connection"); len(lost) > 0 {
		t.Errorf("connections were lost: %q", lost)
	}
	whole := share(tr.between(tr.began, drained), victim.Name)
	first := share(tr.between(ready, ready.Add(slowStart/5)), victim.Name)
	middle := share(tr.between(ready.Add(2*slowStart/5), ready.Add(3*slowStart/5)), victim.Name)
	last := share(tr.between(ready.Add(slowStart+time.Second), time.Now()), victim.Name)
	t.Logf("%d sends; without a connection %v after the drain, %d connections, each with its QUIT; "+
		"share %.1f %%, drained %.1f %%, in the slow start of %v: first fifth %.1f %%, third %.1f %%, after it %.1f %%",
		len(tr.parcels), quiet.Round(time.Millisecond), len(disconnects), whole,
		share(tr.between(drained, before), victim.Name), slowStart, first, middle, last)
	// A fifth of the weight against two whole ones is a share of a tenth, half of it a fifth.
	if first == 0 || first > 20 || middle <= first || last < 25 {
		t.Error("this is no slow start")
	}
}

// TestCredentials changes what the pool logs in with, under load: first to
// another user, then, relay by relay, to a new password of that user, where the
// relay knows the new one before the pool does. No send fails, each message that
// is sent after Update has returned is logged by Postfix as the new user's, and
// the old user's connections end with QUIT.
func TestCredentials(t *testing.T) {
	const (
		newUser     = "app2@lab.test"
		newPassword = "another of 24 letters..."
		newest      = "a third of 24 letters..."
	)
	l := lab.New(t, 3)
	// Connections are short-lived, so that somebody logs in all the time.
	login := func(username, password string) (list []smtplb.Relay) {
		for _, r := range relays(l) {
			r.Username, r.Password = username, password
			r.Conns.MaxMessages = 10
			list = append(list, r)
		}
		return list
	}
	cfg := smtplb.Config{Relays: login(lab.Username, lab.Password)}
	pool, err := smtplb.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	skip := make([]int, len(l.Relays))
	for i, r := range l.Relays {
		skip[i] = logSize(t, r)
	}
	tr := begin(t, pool, 90, 20*time.Second)
	time.Sleep(3 * time.Second)

	for _, r := range l.Relays {
		if err := r.SetPassword(newUser, newPassword); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Relays = login(newUser, newPassword)
	calling := time.Now()
	if err := pool.Update(cfg); err != nil {
		t.Fatal(err)
	}
	updated := time.Now()
	time.Sleep(time.Second)
	for _, r := range l.Relays {
		if err := r.RemoveUser(lab.Username); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * time.Second)

	for i, r := range l.Relays {
		for _, line := range logged(t, r, skip[i], ": disconnect from") {
			if !strings.Contains(line, " quit=1 ") {
				t.Errorf("no QUIT: %s", line)
			}
		}
		if lost := logged(t, r, skip[i], "lost connection"); len(lost) > 0 {
			t.Errorf("connections to %s were lost: %q", r.Name, lost)
		}
	}

	// Whoever logs in between the relay's change and the pool's is refused, and the
	// message leaves through another relay. That the refusing relay's breaker opens
	// then, until Update closes it, ends connections without a QUIT.
	var rolled []time.Time
	for i, r := range l.Relays {
		if err := r.SetPassword(newUser, newest); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		cfg.Relays = append([]smtplb.Relay(nil), cfg.Relays...)
		cfg.Relays[i].Password = newest
		if err := pool.Update(cfg); err != nil {
			t.Fatal(err)
		}
		rolled = append(rolled, time.Now())
		time.Sleep(2 * time.Second)
	}
	after := pool.Stats().Relays
	tr.end(t, l, [2]time.Time{})
	tr.nobodyFailed(t)

	users := map[string]string{} // by relay and queue ID
	var refused, connections int
	for i, r := range l.Relays {
		for _, line := range logged(t, r, skip[i], ": client=") {
			// Nov 26 00:00:00 host postfix/smtpd[1]: 4QUEUEID: client=…, sasl_method=PLAIN, sasl_username=app@lab.test
			head, user, _ := strings.Cut(line, "sasl_username=")
			head, _, _ = strings.Cut(head, ": client=")
			users[r.Name+" "+head[strings.LastIndexByte(head, ' ')+1:]] = user
		}
		refused += len(logged(t, r, skip[i], "authentication failed"))
		connections += len(logged(t, r, skip[i], ": connect from"))
	}
	messages := map[string]int{} // by user
	for _, p := range tr.parcels {
		if p.err != nil || p.start.Before(updated) && p.end.After(calling) { // in the second case either user will do
			continue
		}
		want := lab.Username
		if !p.start.Before(updated) {
			want = newUser
		}
		to := p.receipt.Recipients[0]
		if user := users[to.Relay+" "+to.QueueID]; user != want {
			t.Errorf("%s began %v after Update had returned; %s has %s as a message of %q, want %q",
				p.env.ID, p.start.Sub(updated), to.Relay, to.QueueID, user, want)
		}
		messages[want]++
	}
	if messages[lab.Username] == 0 || messages[newUser] == 0 {
		t.Errorf("messages by user: %v; there should be some of both", messages)
	}
	for i, r := range l.Relays {
		// The newest password, and none but it, lets in whoever connects now.
		if used := share(tr.between(rolled[i].Add(time.Second/2), rolled[len(rolled)-1].Add(2*time.Second)), r.Name); used == 0 {
			t.Errorf("%s was not used after the change of its password", r.Name)
		}
		if s := after[i]; s.State != "up" && s.State != "slow start" { // the latter where a login was refused
			t.Errorf("%s is %s after the change of its password: %s", r.Name, s.State, s.Reason)
		}
	}
	t.Logf("%d sends: %d of the old user, %d of the new one; %d connections, %d logins refused between a relay's change and Update",
		len(tr.parcels), messages[lab.Username], messages[newUser], connections, refused)
}

// TestStopped stops a relay of three with SIGSTOP for 20 s under load: the kernel
// accepts connections and data, and nobody answers. Nobody is lost or sent twice.
// p99 of the sends that the stopped relay has no part in is at most twice what p99
// of all was in the 20 s before, and so is that of all as soon as its breaker has
// opened.
//
// These are milliseconds, in which whatever else runs on the machine is seen, and
// the two spans don't run at the same time. So of up to three runs one must show
// it on a machine that had time for it, before and while the relay was stopped.
// Where it had in none, all three must show it.
func TestStopped(t *testing.T) {
	shown(t, "p99 is at most twice what it was", stopped)
}

// stopped returns what was too slow, if anything, and how starved the process
// was meanwhile.
func stopped(t *testing.T) (slow string, late time.Duration) {
	l := lab.New(t, 3)
	victim := l.Relays[1]
	opened := make(chan time.Time, 1)
	// A connection that is new after each 100 messages (the default) is one dial in
	// 100 sends: p99 would be that of a dial, or not, by where in their hundred the
	// connections are.
	list := relays(l)
	for i := range list {
		list[i].Conns.MaxMessages = -1
	}
	pool, err := smtplb.New(smtplb.Config{
		Relays: list,
		Hooks: smtplb.Hooks{RelayState: func(e smtplb.RelayEvent) {
			if e.Relay == victim.Name && (e.Breaker == "open" || e.State == "down") {
				select {
				case opened <- time.Now():
				default:
				}
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tr := begin(t, pool, 60, 10*time.Second)
	time.Sleep(time.Second) // the first ones connect
	warm := time.Now()
	time.Sleep(20 * time.Second) // as long as it will be stopped: p99 is of as many sends
	var harmed [2]time.Time
	harmed[0] = time.Now()
	if err := victim.Suspend(); err != nil {
		t.Fatal(err)
	}
	harmed[1] = time.Now()
	time.Sleep(time.Until(harmed[0].Add(20 * time.Second)))
	woken := time.Now()
	if err := victim.Resume(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	tr.end(t, l, harmed)

	var open time.Time
	select {
	case open = <-opened:
	default:
		t.Fatal("the stopped relay's breaker did not open")
	}
	if open.Before(harmed[0]) || open.After(woken.Add(-5*time.Second)) {
		t.Fatalf("the stopped relay's breaker opened %v after the stop", open.Sub(harmed[0]))
	}
	var untouched, touched []*parcel
	for _, p := range tr.between(harmed[1], woken) {
		if p.touched(victim.Name) {
			touched = append(touched, p)
		} else {
			untouched = append(untouched, p)
		}
	}
	before := percentile(took(tr.between(warm, harmed[0].Add(-time.Second))), 99) // a send of the last second may meet the stop
	others := percentile(took(untouched), 99)
	then := percentile(took(tr.between(open, woken)), 99)
	t.Logf("p99 before %v; while one is stopped: %v of the %d sends without it, %v (at most %v) of the %d that tried it; breaker open after %v, from then on %v of all %d",
		ms(before), ms(others), len(untouched), ms(percentile(took(touched), 99)), ms(percentile(took(touched), 100)), len(touched),
		ms(open.Sub(harmed[0])), ms(then), len(tr.between(open, woken)))
	if limit := 2 * before; others > limit || then > limit {
		slow = fmt.Sprintf("p99 was %v before the stop, and then %v without the stopped relay, %v of all with its breaker open. ", ms(before), ms(others), ms(then))
	}
	return slow, max(tr.lag.p99(warm, harmed[0]), tr.lag.p99(harmed[0], woken))
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
