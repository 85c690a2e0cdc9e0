package smtptest_test

import (
	"bytes"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/smtplb/smtplb/smtptest"
)

// BenchmarkServer is one connection with pipelining: two writes of
// the client per message.
func BenchmarkServer(b *testing.B) {
	for _, network := range []string{"tcp", "memory"} {
		for _, size := range []int{2 << 10, 1 << 20} {
			b.Run(network+"/"+strconv.Itoa(size>>10)+"KiB", func(b *testing.B) {
				var nc net.Conn
				var s *smtptest.Server
				var err error
				if network == "tcp" {
					s = smtptest.NewServer(smtptest.WithDiscard())
					nc, err = net.Dial("tcp", s.Addr)
				} else {
					n := smtptest.NewNetwork()
					s = n.NewServer(relay, smtptest.WithDiscard())
					nc, err = n.DialContext(b.Context(), "tcp", relay)
				}
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				defer nc.Close()
				buf := make([]byte, 1000)
				// ask sends and reads until the given number of lines has come.
				ask := func(s []byte, lines int) {
					if _, err := nc.Write(s); err != nil {
						b.Fatal(err)
					}
					for lines > 0 {
						n, err := nc.Read(buf)
						if err != nil {
							b.Fatal(err)
						}
						lines -= bytes.Count(buf[:n], []byte{'\n'})
					}
				}
				ask(nil, 1)
				ask([]byte("EHLO c\r\n"), 7)
				envelope := []byte("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
				body := []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78) + ".\r\n")
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				for b.Loop() {
					ask(envelope, 3)
					ask(body, 1)
				}
			})
		}
	}
}
