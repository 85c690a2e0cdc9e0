package smtplb_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"strings"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// The transport table of a Postfix that hands its mail to a load balancer, a port for each provider, becomes the relays and routes of a pool.
func ExampleParseTransportMap() {
	gmail, rest := smtptest.NewServer(), smtptest.NewServer()
	defer gmail.Close()
	defer rest.Close()

	// The file is os.Open("/etc/postfix/transport") elsewhere.
	file := strings.NewReader(fmt.Sprintf(`
# where mail leaves
gmail.com        smtp:%[1]s
*.gmail.com      smtp:%[1]s
old.example.com  error:5.1.6 moved to example.org
*                smtp:%[2]s
`, bracketed(gmail.Addr), bracketed(rest.Addr)))

	m, err := smtplb.ParseTransportMap(file, smtplb.TransportMapOptions{
		Relay:     smtplb.Relay{Conns: smtplb.Conns{Max: 5}}, // of each host; credentials and TLS belong here too
		Delimiter: "+",
	})
	if err != nil {
		log.Fatal(err) // all that is wrong, with the lines
	}
	for _, w := range m.Warnings {
		fmt.Println(w)
	}
	pool, err := smtplb.New(smtplb.Config{Relays: m.Relays, Routes: m.Routes})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	receipt, err := pool.Deliver(context.Background(), &smtplb.Envelope{
		From: "shop@example.com", To: []string{"ann@gmail.com", "bob@example.org", "eve@old.example.com"},
		Body: smtplb.Bytes([]byte("From: shop@example.com\r\nSubject: Hello\r\n\r\nHello.\r\n")),
	})
	fmt.Println(err)
	for _, r := range receipt.Recipients {
		switch r.Relay {
		case gmail.Addr:
			fmt.Println(r.Addr, r.Outcome, "by the relay for Gmail")
		case rest.Addr:
			fmt.Println(r.Addr, r.Outcome, "by the relay for the rest")
		default:
			fmt.Println(r.Addr, r.Outcome, "by", r.Err())
		}
	}
	// Output:
	// line 4: "*.domain" is not Postfix's way to write ".domain", which it was taken for
	// smtplb: 2 of 3 accepted, 1 of 3 failed; route transport:5: 5.1.6 moved to example.org
	// ann@gmail.com accepted by the relay for Gmail
	// bob@example.org accepted by the relay for the rest
	// eve@old.example.com failed by route transport:5: 5.1.6 moved to example.org
}

// bracketed writes an address as a nexthop that Postfix takes as it is.
func bracketed(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	return "[" + host + "]:" + port
}
