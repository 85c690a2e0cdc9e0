package warmup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Date is a UTC day, counted from the first of 1970.
type Date int32

const dayNanos = int64(24 * time.Hour)

// On returns the UTC day of t.
func On(t time.Time) Date { return dateOf(t.UnixNano()) }

func dateOf(nanos int64) Date {
	d := nanos / dayNanos
	if nanos%dayNanos < 0 {
		d--
	}
	return Date(d)
}

func (d Date) nanos() int64 { return int64(d) * dayNanos }

// Time is when d begins.
func (d Date) Time() time.Time { return time.Unix(int64(d)*24*60*60, 0).UTC() }

func (d Date) String() string { return d.Time().Format(time.DateOnly) }

// MarshalText makes dates readable in a Record's JSON.
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Date) UnmarshalText(b []byte) error {
	t, err := time.Parse(time.DateOnly, string(b))
	if err == nil {
		*d = Date(t.Unix() / (24 * 60 * 60))
	}
	return err
}

// Record is what of a warm-up outlives the process. Several processes may share it: each is granted chunks of a day's cap, which are counted here before they are used.
type Record struct {
	Version int    `json:"version"`
	Writer  string `json:"writer"`          // who wrote it, and
	Seq     uint64 `json:"seq"`             // which of that one's drafts it is: no two records are the same
	Start   Date   `json:"start,omitempty"` // the Config.Start that the warm-up was begun by
	Used    Date   `json:"used,omitempty"`  // the last day on which anything was taken
	Days    []Day  `json:"days,omitempty"`  // in their order; the last keepDays, so that a clock that is set back finds what it has used

	// Full is when a twenty-fourth of the cap may go out at once again, in Unix nanoseconds, if all goes out now that was granted and isn't given back; 0: nobody knows. A process that begins goes by it, or each restart would have a burst of its own.
	Full      int64            `json:"full,omitempty"`
	Providers map[string]int64 `json:"providers,omitempty"` // the same for each that has a cap
}

// Day is what is known of one day.
type Day struct {
	Day       Date           `json:"day"`
	Stage     int            `json:"stage"`
	Granted   int            `json:"granted"` // of the cap, to all processes together: it was used, may still be, or is lost with a process that ended without a word
	Providers map[string]int `json:"providers,omitempty"`
	Delivered int64          `json:"delivered,omitempty"`
	Held      bool           `json:"held,omitempty"`
}

const (
	version   = 1
	keepDays  = 8
	idleDays  = 30 // a relay that sent nothing for longer starts again
	maxStages = 100_000
	maxCount  = 1 << 50
	// MaxCap bounds a stage's cap.
	MaxCap = 1_000_000_000
)

// Encode returns r as JSON.
func (r *Record) Encode() ([]byte, error) { return json.Marshal(r) }

// Decode reads what Encode wrote. It takes nothing else: whoever went on from a state that was misread would send a whole day's mail twice.
func Decode(b []byte) (*Record, error) {
	var r Record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("not the state of a warm-up: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("not the state of a warm-up: something follows it")
	}
	if r.Version != version {
		return nil, fmt.Errorf("the state of a warm-up in version %d; this is version %d", r.Version, version)
	}
	if len(r.Days) > keepDays || len(r.Writer) > 255 || r.Seq > maxCount {
		return nil, fmt.Errorf("not the state of a warm-up: %d days, draft %d of %d bytes", len(r.Days), r.Seq, len(r.Writer))
	}
	if r.Full < 0 {
		return nil, fmt.Errorf("not the state of a warm-up: full at %d", r.Full)
	}
	for name, full := range r.Providers {
		if full < 0 {
			return nil, fmt.Errorf("not the state of a warm-up: %q full at %d", name, full)
		}
	}
	for i, day := range r.Days {
		bad := i > 0 && day.Day <= r.Days[i-1].Day || day.Stage < 0 || day.Stage > maxStages || day.Granted < 0 || day.Granted > MaxCap || day.Delivered < 0 || day.Delivered > maxCount
		for _, n := range day.Providers {
			bad = bad || n < 0 || n > MaxCap
		}
		if bad {
			return nil, fmt.Errorf("not the state of a warm-up: %v is impossible", day.Day)
		}
	}
	return &r, nil
}

func (r *Record) clone() *Record {
	c := *r
	c.Days = slices.Clone(r.Days)
	c.Providers = maps.Clone(r.Providers)
	for i := range c.Days {
		c.Days[i].Providers = maps.Clone(c.Days[i].Providers)
	}
	return &c
}

// find returns the entry of d, nil if there is none.
func (r *Record) find(d Date) *Day {
	for i := range r.Days {
		if r.Days[i].Day == d {
			return &r.Days[i]
		}
	}
	return nil
}

// Config is a warm-up in plain numbers.
type Config struct {
	Start       Date             // the first day, before which nothing is sent; 0: that on which a Record is begun
	Curve       []int            // the cap of each stage; then there is none any more
	PerProvider map[string][]int // the same for some providers, below that of the relay
	OnDelivery  bool             // a stage ends when 90 % of it was delivered in a day, not with the day
	Writer      string           // no other Schedule has the same
}

func (c *Config) clone() Config {
	own := *c
	own.Curve = slices.Clone(c.Curve)
	own.PerProvider = maps.Clone(c.PerProvider)
	for name, curve := range own.PerProvider {
		own.PerProvider[name] = slices.Clone(curve)
	}
	return own
}

// stages is how many there are: in the next one nothing has a cap.
func (c *Config) stages() int {
	n := len(c.Curve)
	for _, curve := range c.PerProvider {
		n = max(n, len(curve))
	}
	return n
}

// capOf returns the cap of a stage, 0 where it has none.
func capOf(curve []int, stage int) int {
	if stage < len(curve) {
		return curve[stage]
	}
	return 0
}

// restarts reports whether the warm-up of r is to begin anew, since the configuration names another Start.
func (c *Config) restarts(r *Record) bool { return c.Start != 0 && c.Start != r.Start }

// begin is the stage of d in a warm-up of which nothing but the configuration is known.
func (c *Config) begin(d Date) int {
	if c.Start == 0 || c.OnDelivery {
		return 0
	}
	return min(max(int(d-c.Start), 0), c.stages())
}

// open returns d's entry in r, which it makes where there is none.
func (c *Config) open(r *Record, d Date) *Day {
	i, found := slices.BinarySearchFunc(r.Days, d, func(x Day, d Date) int { return int(x.Day) - int(d) })
	restart := c.restarts(r)
	if found && !restart {
		return &r.Days[i]
	}
	stage := c.stage(r, d, i, restart)
	if restart {
		r.Start = c.Start
	}
	if found { // what was granted today was granted
		r.Days[i].Stage = stage
		return &r.Days[i]
	}
	if r.Used == 0 {
		r.Used = d
	}
	day := Day{Day: d, Stage: stage}
	// The clock was set back by more days than are remembered. What was sent on d nobody knows, so nothing more is. The day that is farthest ahead gives way to it: the days that follow d must not meet the same.
	lost := i == 0 && len(r.Days) >= keepDays
	if lost {
		day.Granted = MaxCap
		for name := range c.PerProvider {
			if day.Providers == nil {
				day.Providers = make(map[string]int)
			}
			day.Providers[name] = MaxCap
		}
		r.Days = r.Days[:keepDays-1]
	}
	r.Days = slices.Insert(r.Days, i, day)
	if len(r.Days) > keepDays {
		r.Days = slices.Delete(r.Days, 0, 1)
	}
	return r.find(d)
}

// stage is that of d, which has its place before r.Days[i].
func (c *Config) stage(r *Record, d Date, i int, restart bool) int {
	last := c.stages()
	switch {
	case restart || len(r.Days) == 0:
		return c.begin(d)
	case i == 0: // all that is known is of later days: the clock was set back
		return min(max(r.Days[0].Stage-max(int(r.Days[0].Day-d), 1), 0), last)
	case int(d)-int(r.Used) > idleDays:
		return 0
	}
	p := &r.Days[i-1]
	if p.Stage >= last {
		return last
	}
	more := int(d - p.Day)
	if c.OnDelivery {
		more = 1
		if limit := int64(capOf(c.Curve, p.Stage)); p.Delivered*10 < limit*9 {
			more = 0
		}
	}
	if p.Held && more > 0 {
		more--
	}
	return min(p.Stage+more, last)
}
