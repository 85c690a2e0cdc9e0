package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"text/tabwriter"
)

// A result is a client's row in the table of a work. What is null has no meaning there, or isn't known.
type result struct {
	Work   string `json:"work"`
	Client string `json:"client"`
	Mode   string `json:"mode"`

	RateX   *float64 `json:"rate_x"` // against net/smtp on a kept connection, in the same round: the median over the rounds
	RateMin *float64 `json:"rate_x_min"`
	RateMax *float64 `json:"rate_x_max"`
	CPUX    *float64 `json:"cpu_x"` // the same of the CPU time of a message
	CPUMin  *float64 `json:"cpu_x_min"`
	CPUMax  *float64 `json:"cpu_x_max"`

	Rate   *float64 `json:"rate"`   // messages a second
	CPU    *float64 `json:"cpu_us"` // of a message
	Allocs *float64 `json:"allocs"` // of a send
	Bytes  *float64 `json:"bytes"`  // allocated by a send
	P50    *float64 `json:"p50_ms"` // how long a send takes, the wait for a connection included
	P99    *float64 `json:"p99_ms"`
	Heap   *float64 `json:"heap_bytes,omitempty"` // of an idle connection
	Rounds int      `json:"rounds"`
}

// rounded keeps four digits: there aren't more to be had.
func rounded(v *float64) *float64 {
	if v == nil || *v == 0 || math.IsNaN(*v) || math.IsInf(*v, 0) {
		return v
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(*v))))
	r := math.Round(*v*scale) / scale
	return &r
}

// writeJSON writes an object a line.
func writeJSON(w io.Writer, rows []result) error {
	e := json.NewEncoder(w)
	for _, r := range rows {
		for _, v := range []**float64{
			&r.RateX, &r.RateMin, &r.RateMax, &r.CPUX, &r.CPUMin, &r.CPUMax,
			&r.Rate, &r.CPU, &r.Allocs, &r.Bytes, &r.P50, &r.P99, &r.Heap,
		} {
			*v = rounded(*v)
		}
		if err := e.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

const none = "–"

// number prints three digits, more where there are more before the point.
func number(v *float64) string {
	if v == nil {
		return none
	}
	switch a := math.Abs(*v); {
	case a >= 100 || a == 0:
		return fmt.Sprintf("%.0f", *v)
	case a >= 9.995:
		return fmt.Sprintf("%.1f", *v)
	case a >= 0.0995:
		return fmt.Sprintf("%.2f", *v)
	default:
		return fmt.Sprintf("%.3f", *v)
	}
}

// withSpread prints a median and, in brackets, the ends.
func withSpread(median, low, high *float64) string {
	if median == nil {
		return none
	}
	return fmt.Sprintf("%s (%s–%s)", number(median), number(low), number(high))
}

// size prints bytes.
func size(v *float64) string {
	switch {
	case v == nil:
		return none
	case *v >= 1e6:
		mb := *v / 1e6
		return number(&mb) + " MB"
	case *v >= 1e3:
		kb := *v / 1e3
		return number(&kb) + " KB"
	}
	return fmt.Sprintf("%.0f B", *v)
}

// table is a work's: the header and the rows.
func table(rows []result) [][]string {
	if rows[0].Heap != nil {
		t := [][]string{{"client", "mode", "heap of an idle connection"}}
		for _, r := range rows {
			t = append(t, []string{r.Client, r.Mode, size(r.Heap)})
		}
		return t
	}
	t := [][]string{{"client", "mode", "rate ×", "CPU ×", "messages/s", "allocs", "bytes", "p50 ms", "p99 ms"}}
	for _, r := range rows {
		t = append(t, []string{
			r.Client, r.Mode, withSpread(r.RateX, r.RateMin, r.RateMax), withSpread(r.CPUX, r.CPUMin, r.CPUMax),
			number(r.Rate), number(r.Allocs), size(r.Bytes), number(r.P50), number(r.P99),
		})
	}
	return t
}

// writeText writes a work's table for a terminal.
func writeText(w io.Writer, about string, rows []result) error {
	fmt.Fprintf(w, "\n%s: %s; %d rounds\n", rows[0].Work, about, rows[0].Rounds)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range table(rows) {
		fmt.Fprintln(tw, "  "+strings.Join(line, "\t"))
	}
	return tw.Flush()
}

// machine says on what the figures were had.
func machine() string {
	return fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// writeMarkdown writes the overview for the README, and the table of each work behind it. about tells what the works are.
func writeMarkdown(w io.Writer, rows []result, about func(work string) string) error {
	fmt.Fprintf(w, "Measured on a machine with %s. Each figure is the median of the ratios to net/smtp on a kept connection within a round.\n\n", machine())
	var workNames []string
	byWork := map[string][]result{}
	for _, r := range rows {
		if byWork[r.Work] == nil {
			workNames = append(workNames, r.Work)
		}
		byWork[r.Work] = append(byWork[r.Work], r)
	}
	if overview := overview(rows, workNames); len(overview) > 1 {
		fmt.Fprint(w, "Messages a second / CPU time of a message, as multiples of net/smtp's:\n\n")
		writeTable(w, overview)
	}
	for _, name := range workNames {
		fmt.Fprintf(w, "\n**%s**: %s; %d rounds\n\n", name, about(name), byWork[name][0].Rounds)
		writeTable(w, table(byWork[name]))
	}
	return nil
}

// overview has a row for each client and a column for each work.
func overview(rows []result, workNames []string) [][]string {
	header := []string{"client"}
	cells := map[identity]map[string]string{}
	var ids []identity
	for _, e := range entries {
		ids = append(ids, e.identity)
	}
	for _, r := range rows {
		id := identity{r.Client, r.Mode}
		if r.RateX == nil || id == base {
			continue
		}
		if cells[id] == nil {
			cells[id] = map[string]string{}
		}
		cells[id][r.Work] = number(r.RateX) + " / " + number(r.CPUX)
	}
	for _, name := range workNames {
		if name != idleWork {
			header = append(header, name)
		}
	}
	t := [][]string{header}
	for _, id := range ids {
		if cells[id] == nil {
			continue
		}
		line := []string{id.client + ", " + id.mode}
		for _, name := range header[1:] {
			cell := cells[id][name]
			if cell == "" {
				cell = none
			}
			line = append(line, cell)
		}
		t = append(t, line)
	}
	return t
}

func writeTable(w io.Writer, t [][]string) {
	for i, line := range t {
		fmt.Fprintf(w, "| %s |\n", strings.Join(line, " | "))
		if i == 0 {
			fmt.Fprintln(w, strings.Repeat("|---", len(line))+"|")
		}
	}
}
