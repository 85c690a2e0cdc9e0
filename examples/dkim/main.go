// Dkim signs each message with DKIM before it leaves, whichever relay it leaves through.
//
//	go run ./examples/dkim
//
// It starts two relays inside its process, of which one fails, makes a key, sends a message over both, and prints what the second one was given: the signature is the one that was made before the first was
// tried. It sends nothing anywhere else.
//
// A signer of your own is any function that makes header fields: one that asks a signing service, or one from a library. The one to copy is in dkim.go.
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

const message = "From: Billing <billing@example.com>\r\nTo: customer@example.org\r\nSubject: Your invoice\r\nDate: Thu, 26 Nov 2026 09:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nThank  you. \r\n\r\n"

func main() {
	if err := demo(os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func demo(w io.Writer) error {
	first, second := smtptest.NewServer(), smtptest.NewServer() // in the place of real ones
	defer first.Close()
	defer second.Close()
	first.On(smtptest.EndOfData).Reply(451, "4.3.0 Not now")

	public, key, err := ed25519.GenerateKey(nil) // a real one comes from where you keep secrets; for RSA: x509.ParsePKCS8PrivateKey
	if err != nil {
		return err
	}
	pool, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{{Name: "first", Addr: first.Addr}, {Name: "second", Addr: second.Addr, Tier: 1}},
		Signer: signer("example.com", "s2026", key),
	})
	if err != nil {
		return err
	}
	defer pool.Close()
	receipt, err := pool.Deliver(context.Background(), &smtplb.Envelope{
		From: "billing@example.com", To: []string{"customer@example.org"}, Body: smtplb.Bytes([]byte(message)),
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%v\n\nIn DNS: s2026._domainkey.example.com TXT \"v=DKIM1; k=ed25519; p=%s\"\n\n%s", receipt, base64.StdEncoding.EncodeToString(public), second.Messages()[0].Data)
	return err
}
