package session

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ehlos are replies to EHLO as servers gave them, and as nobody should.
var ehlos = []string{
	"", "mx.example.com", "mx.example.com Hello client [192.0.2.1]",
	// Postfix, Exim, Sendmail, OpenSMTPD, Exchange, Gmail, Amazon SES, qmail.
	"mail.example.com\nPIPELINING\nSIZE 10240000\nVRFY\nETRN\nSTARTTLS\nAUTH PLAIN LOGIN\nAUTH=PLAIN LOGIN\nENHANCEDSTATUSCODES\n8BITMIME\nDSN\nSMTPUTF8\nCHUNKING",
	"mail.example.com Hello client.test [192.0.2.1]\nSIZE 52428800\nLIMITS MAILMAX=1000 RCPTMAX=50000\n8BITMIME\nPIPELINING\nPIPECONNECT\nCHUNKING\nSTARTTLS\nPRDR\nHELP",
	"mail.example.com Hello client.test [192.0.2.1], pleased to meet you\nENHANCEDSTATUSCODES\nPIPELINING\n8BITMIME\nSIZE\nDSN\nETRN\nAUTH DIGEST-MD5 CRAM-MD5\nDELIVERBY\nHELP",
	"mail.example.com Hello client.test [192.0.2.1], pleased to meet you\n8BITMIME\nENHANCEDSTATUSCODES\nSIZE 36700160\nDSN\nHELP",
	"EXCH01.example.com Hello [192.0.2.1]\nSIZE 37748736\nPIPELINING\nDSN\nENHANCEDSTATUSCODES\nSTARTTLS\nX-ANONYMOUSTLS\nAUTH NTLM LOGIN\nX-EXPS GSSAPI NTLM\n8BITMIME\nBINARYMIME\nCHUNKING\nXEXCH50\nXRDST\nXSHADOWREQUEST",
	"smtp.gmail.com at your service, [192.0.2.1]\nSIZE 35882577\n8BITMIME\nAUTH LOGIN PLAIN XOAUTH2 PLAIN-CLIENTTOKEN OAUTHBEARER XOAUTH\nENHANCEDSTATUSCODES\nPIPELINING\nCHUNKING\nSMTPUTF8",
	"email-smtp.amazonaws.com\n8BITMIME\nSTARTTLS\nAUTH PLAIN LOGIN\nOk",
	"mail.example.com\nAUTH LOGIN CRAM-MD5 PLAIN\nAUTH=LOGIN CRAM-MD5 PLAIN\nPIPELINING\n8BITMIME",
	// A middlebox that overwrites what it doesn't know, and one that mends the keyword only.
	"mx.example.com\nXXXXXXXA\nXXXXXXXXXXXXXXXB\n8BITMIME\nXXXXXXXXXXXXXXXXXXXXXC", "mx\nSTARTTLSX\nXSTARTTLS\n STARTTLS\nSTARTTLS=",
	// Case, blanks, doubled and broken parameters.
	"mx\npipelining\nSize 100\nauth plain Login\nauth=Cram-MD5\nLimits rcptmax=5 MailMax=7", "mx\nSIZE  100 \nSIZE\t5\nDSN \t\n\nAUTH\nAUTH \nAUTH=",
	"mx\nSIZE 1\nSIZE 2\nAUTH PLAIN PLAIN\nAUTH PLAIN", "mx\nSIZE -1", "mx\nSIZE +5", "mx\nSIZE 0x10", "mx\nSIZE 99999999999999999999", "mx\nSIZE 999999999999999999", "mx\nSIZE \u0661",
	"mx\nLIMITS RCPTMAX=0 MAILMAX= RCPTMAX RCPTDOMAINMAX=3 =4", "mx\nLIMITS RCPTMAX=999999999999 MAILMAX=-3", "mx\nLIMITS RCPTMAX=5\nLIMITS RCPTMAX=6",
	// What another alphabet folds to a keyword is none.
	"mx\n\u017fTARTTLS\n\u017fIZE 1\nP\u0131PELINING\nD\u017fN\nCHUN\u212aING", "mx\nAUTH PLA\u0131N", "mx\nL\u0131MITS RCPTMAX=1", "mx\nSIZE\u00a05\nSIZE \u20035",
	"mx\r\nSIZE 5\r\nDSN\r", "mx\nDSN\x00\n\xff\xfe\nAUTH \x00 \xff", "mx\nAUTH " + strings.Repeat("A B C D ", 400), "mx\nAUTH " + manyMechanisms(100), strings.Repeat("mx\n", 127),
}

func manyMechanisms(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "M%d ", i)
	}
	return b.String()
}

// recased is s with the letters of ASCII from first to last moved by that much.
func recased(s string, first, last byte, by int) string {
	b := []byte(s)
	for i, c := range b {
		if c >= first && c <= last {
			b[i] = byte(int(c) + by)
		}
	}
	return string(b)
}

func upperASCII(s string) string { return recased(s, 'a', 'z', -32) }
func lowerASCII(s string) string { return recased(s, 'A', 'Z', 32) }

// linesOf are the lines of a reply to EHLO by keyword, told in the plainest way.
func linesOf(text string) (keywords, params []string) {
	for i, l := range strings.Split(text, "\n") {
		if i == 0 {
			continue
		}
		k, p, _ := strings.Cut(strings.TrimRight(l, " \t"), " ")
		k = upperASCII(k)
		if strings.HasPrefix(k, "AUTH=") {
			k, p = "AUTH", l[len("AUTH="):]
		}
		keywords, params = append(keywords, k), append(params, p)
	}
	return keywords, params
}

// rendered is a reply to EHLO that offers x and the mechanisms.
func rendered(x Extensions, mechanisms []string) string {
	lines := []string{"mx"}
	for _, k := range []struct {
		on      bool
		keyword string
	}{
		{x.Pipelining, "PIPELINING"}, {x.EightBitMIME, "8BITMIME"}, {x.SMTPUTF8, "SMTPUTF8"}, {x.StartTLS, "STARTTLS"}, {x.DSN, "DSN"}, {x.Chunking, "CHUNKING"}, {x.RequireTLS, "REQUIRETLS"},
		{x.HasSize, "SIZE " + strconv.FormatInt(x.Size, 10)}, {x.RcptMax > 0, fmt.Sprint("LIMITS RCPTMAX=", x.RcptMax)}, {x.MailMax > 0, fmt.Sprint("LIMITS MAILMAX=", x.MailMax)},
		{len(mechanisms) > 0, "AUTH " + strings.Join(mechanisms, " ")},
	} {
		if k.on {
			lines = append(lines, k.keyword)
		}
	}
	return strings.Join(lines, "\n")
}

// FuzzEHLO reads replies to EHLO: whatever stands there, what is offered is what a line's first word says, in numbers that make
// sense; saying it again in other words or letters changes nothing; and what is to be ignored might as well not stand there.
func FuzzEHLO(f *testing.F) {
	for _, s := range ehlos {
		f.Add(s, "PIPELINING")
		f.Add(s, "AUTH")
		f.Add(s, "")
	}
	f.Add("mx\nDSN\nAUTH=PLAIN\nAUTH LOGIN\nSIZE 5", "SIZE DSN AUTH")
	f.Fuzz(func(t *testing.T, text, ignored string) {
		text = text[:min(len(text), 32<<10)] // as much as a reply may have
		ignore := strings.Fields(upperASCII(ignored))
		x, auth := parseExtensions(text, ignore)

		// Bounds.
		if x.Size < 0 || x.RcptMax < 0 || x.RcptMax > 1<<30 || x.MailMax < 0 || x.MailMax > 1<<30 || x.Size > 0 && !x.HasSize || len(auth) > 32 {
			t.Fatalf("%q: %+v, %d mechanisms", text, x, len(auth))
		}
		for i, m := range auth {
			if m == "" || strings.ContainsAny(m, " \t\n") || slices.Contains(auth[:i], m) {
				t.Fatalf("%q: mechanism %q of %q", text, m, auth)
			}
		}

		// What is offered stands there, and what stands there is offered.
		keywords, params := linesOf(text)
		offered := map[string]bool{}
		for _, k := range keywords {
			offered[k] = offered[k] || !slices.Contains(ignore, k)
		}
		for k, got := range map[string]bool{
			"PIPELINING": x.Pipelining, "8BITMIME": x.EightBitMIME, "SMTPUTF8": x.SMTPUTF8, "STARTTLS": x.StartTLS, "DSN": x.DSN, "CHUNKING": x.Chunking,
			"REQUIRETLS": x.RequireTLS, "SIZE": x.HasSize,
		} {
			if got != offered[k] {
				t.Fatalf("%q, ignoring %q: %s is %v, want %v", text, ignore, k, got, offered[k])
			}
		}
		if !offered["AUTH"] && auth != nil || !offered["LIMITS"] && (x.RcptMax != 0 || x.MailMax != 0) {
			t.Fatalf("%q, ignoring %q: %+v %q", text, ignore, x, auth)
		}
		for _, m := range auth {
			if !strings.Contains(upperASCII(text), m) {
				t.Fatalf("%q: mechanism %q stands nowhere", text, m)
			}
		}

		// Idempotent, and blind for the case of letters.
		again, authAgain := parseExtensions(rendered(x, auth), nil)
		if again != x || !slices.Equal(authAgain, auth) {
			t.Fatalf("%q: %+v %q became %+v %q", text, x, auth, again, authAgain)
		}
		for _, other := range []string{lowerASCII(text), upperASCII(text)} {
			if y, authOther := parseExtensions(other, ignore); y != x || !slices.Equal(authOther, auth) {
				t.Fatalf("%q: %+v %q, and %q: %+v %q", text, x, auth, other, y, authOther)
			}
		}

		// Ignoring is as good as leaving out.
		left := []string{"mx"}
		for i, k := range keywords {
			if !slices.Contains(ignore, k) {
				left = append(left, k+" "+params[i])
			}
		}
		if y, authLeft := parseExtensions(strings.Join(left, "\n"), nil); y != x || !slices.Equal(authLeft, auth) {
			t.Fatalf("%q, ignoring %q: %+v %q; without those lines %+v %q", text, ignore, x, auth, y, authLeft)
		}
	})
}
