package smtptest_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/smtplb/smtplb/smtptest"
)

// FuzzBody: what is stuffed as RFC 5321 §4.5.2 says arrives as it was, however it
// is cut into writes, and the conversation goes on behind it.
func FuzzBody(f *testing.F) {
	for _, b := range bodies {
		f.Add(b.want, uint8(3))
		f.Add(b.wire, uint8(1))
	}
	f.Fuzz(func(t *testing.T, body string, size uint8) {
		body = body[:min(len(body), 2000)] // each write takes its time
		if body != "" && !strings.HasSuffix(body, "\r\n") {
			body += "\r\n"
		}
		wire := strings.ReplaceAll("\r\n"+body, "\r\n.", "\r\n..")[2:] + ".\r\n"
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			c := greeted(t, n)
			c.ready()
			for b := range slices.Chunk([]byte(wire), int(size)+1) {
				c.send("%s", b)
				synctest.Wait()
			}
			c.expect("250 ")
			c.cmd("250 ", "NOOP")
			if msgs := s.Messages(); len(msgs) != 1 || string(msgs[0].Data) != body {
				t.Errorf("stored %q, want %q", msgs[0].Data, body)
			}
		})
	})
}

// FuzzServer: whatever a client sends, the server answers in lines of SMTP, keeps
// standing and can be closed.
func FuzzServer(f *testing.F) {
	f.Add("EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n..\r\n.\r\nQUIT\r\n")
	f.Add("EHLO x\r\nMAIL FROM:<a@x.test> SIZE=3\r\nRCPT TO:<\"b >\"@y.test> NOTIFY=NEVER\r\nBDAT 3\r\nabcBDAT 0 LAST\r\n")
	f.Add("EHLO x\r\nAUTH PLAIN\r\n*\r\nAUTH LOGIN AA==\r\nAA==\r\nAUTH SCRAM-SHA-1 biwsbj11LHI9YQ==\r\nYz1iaXdzLHI9YSxwPQ==\r\nAUTH XOAUTH2 =\r\n\r\n")
	f.Add("STARTTLS\r\n\x16\x03\x01\x00\x05")
	f.Add("\n\r\n\x00\xff HELO\r\n")
	f.Fuzz(func(t *testing.T, input string) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			c := dial(t, n)
			c.expect("220 ")
			c.Write([]byte(input)) // it may be cut off
			synctest.Wait()
			c.CloseWrite()
			for {
				reply, err := c.reply()
				if err != nil {
					break
				}
				last := reply[strings.LastIndexByte(reply, '\n')+1:]
				if len(last) < 4 || last[0] < '2' || last[0] > '5' || last[3] != ' ' {
					t.Fatalf("reply %q", reply)
				}
			}
		}, smtptest.WithAuth("u", "p", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "SCRAM-SHA-1"), smtptest.WithExtensions("PIPELINING", "SIZE 100", "CHUNKING", "DSN", "SMTPUTF8"))
	})
}
