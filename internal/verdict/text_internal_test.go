package verdict

import (
	"strings"
	"testing"
)

// A phrase with a capital or a blank too many would never be found.
func TestPhrases(t *testing.T) {
	for _, p := range []phrases{
		greyPhrases, greyWords, agePhrases, perConnection, messageWords, submissionPhrases, quotaPhrases, periodWords, amountWords, receiverPhrases, ratePhrases, rateWords,
		tooManyPhrases, recipientPhrases, recipientRatePhrases, clientPhrases, senderPhrases, sendAsPhrases,
	} {
		for _, x := range p {
			if f := fold(string(x)); string(f.b[:f.n]) != string(x) || len(x) < 3 {
				t.Errorf("%q can't be found: it folds to %q", x, f.b[:f.n])
			}
		}
	}
}

func TestFold(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "",
		"  \n ":                               "",
		"Too  MANY\tMessages":                 "too many messages",
		"4.7.0 Too many\n4.7.0 messages":      "too many messages",
		"4.7.0 limit of 4.7.0 reached":        "limit of 4.7.0 reached",
		"4.7.0":                               "",
		"4.7.0\n4.7.0\nx":                     "x",
		"45.7.0 x":                            "45.7.0 x",
		"4.7 x":                               "4.7 x",
		"<Bob@Example.com>: Greylisted":       "@ greylisted",
		"a @ b@ @c d":                         "a @ @ @ d",
		"5.1.1 <bob@example.com>\n5.1.1 bye":  "@ bye",
		"4.7.0a x":                            "4.7.0a x",
		"9.9.9 x":                             "x",
		"AZaz[`{@Q AZaz[`{/09":                "@ azaz[`{/09",
		"Ä\x00\x01B":                          "Ä b",
		strings.Repeat("x", maxFolded) + " y": strings.Repeat("x", maxFolded),
		strings.Repeat("x ", maxFolded):       strings.TrimRight(strings.Repeat("x ", maxFolded/2), " "),
	} {
		if f := fold(in); string(f.b[:f.n]) != want {
			t.Errorf("fold(%q) = %q, want %q", in, f.b[:f.n], want)
		}
	}
}

func TestHasWord(t *testing.T) {
	for in, want := range map[string]bool{
		"daily":            true,
		"a daily limit":    true,
		"(daily)":          true,
		"daily.":           true,
		"limit: daily. no": true,
		"daily:":           true,
		"daily.example":    false,
		"my-daily":         false,
		"daily-news":       false,
		"daily_news":       false,
		"dailyä":           false,
		"ädaily":           false,
		"daily0":           false,
		"daily9":           false,
		"dailya":           false,
		"dailyz":           false,
		"daily\x80":        false,
		"daily/":           true,
		"daily`":           true,
		"daily{":           true,
		"2daily":           false,
		"dailydaily":       false,
		"dailyx daily":     true,
		"mx.daily":         false,
		"no. daily":        true,
		"":                 false,
	} {
		f := fold(in)
		if got := f.hasWord(list("daily")); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}
