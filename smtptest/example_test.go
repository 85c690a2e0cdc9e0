package smtptest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/smtp"
	"net/textproto"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// SendWelcome is the application's code under test.
func SendWelcome(addr, to string) error {
	msg := "From: shop@example.org\r\nTo: " + to + "\r\nSubject: Welcome\r\n\r\nGood to have you.\r\n"
	return smtp.SendMail(addr, nil, "shop@example.org", []string{to}, []byte(msg))
}

// An application's test starts a relay, lets the application send to it, and looks
// at what came.
func Example() {
	relay := smtptest.NewServer()
	defer relay.Close()

	if err := SendWelcome(relay.Addr, "bob@example.com"); err != nil {
		log.Fatal(err)
	}

	m := relay.Messages()[0]
	fmt.Println("from:", m.From)
	fmt.Println("to:", m.To)
	fmt.Println("subject:", m.Header.Get("Subject"))
	fmt.Printf("body: %s", m.Body())
	// Output:
	// from: shop@example.org
	// to: [bob@example.com]
	// subject: Welcome
	// body: Good to have you.
}

// A relay does what its script says, and is a correct relay otherwise.
func ExampleServer_On() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.Rcpt).For("bob@example.com").Reply(550, "5.1.1 No such user")
	relay.On(smtptest.Mail).Nth(2).Reply(451, "4.3.0 Try again later")

	var reply *textproto.Error
	if err := SendWelcome(relay.Addr, "bob@example.com"); errors.As(err, &reply) {
		fmt.Println("bob:", reply.Code, reply.Msg)
	}
	if err := SendWelcome(relay.Addr, "carol@example.com"); errors.As(err, &reply) {
		fmt.Println("carol:", reply.Code, reply.Msg)
	}
	fmt.Println("dave:", SendWelcome(relay.Addr, "dave@example.com"))
	// Output:
	// bob: 550 5.1.1 No such user
	// carol: 451 4.3.0 Try again later
	// dave: <nil>
}

// A relay that takes the message over and dies before it can say so: sending again
// makes a duplicate.
func ExampleRule_Drop() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.EndOfData).Times(1).Drop()

	if SendWelcome(relay.Addr, "bob@example.com") != nil {
		SendWelcome(relay.Addr, "bob@example.com")
	}
	fmt.Println(len(relay.Messages()), "messages")
	// Output: 2 messages
}

// Mail that is sent in the background is waited for.
func ExampleServer_WaitFor() {
	relay := smtptest.NewServer()
	defer relay.Close()
	go SendWelcome(relay.Addr, "bob@example.com")
	go SendWelcome(relay.Addr, "carol@example.com")

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	msgs, err := relay.WaitFor(ctx, 2)
	fmt.Println(len(msgs), err)
	// Output: 2 <nil>
}

// TLS and AUTH, as most relays want them.
func ExampleWithAuth() {
	relay := smtptest.NewServer(smtptest.WithTLS(), smtptest.WithAuth("shop", "s3cret"))
	defer relay.Close()

	c, err := smtp.Dial(relay.Addr)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	cfg := relay.ClientTLS() // trusts the relay's certificate
	cfg.ServerName = "localhost"
	if err := c.StartTLS(cfg); err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Auth(smtp.PlainAuth("", relay.Username, relay.Password, "127.0.0.1")))
	c.Quit()
	fmt.Println(relay.Stats().Auths, "AUTH")
	// Output:
	// <nil>
	// 1 AUTH
}

// A relay is killed and comes back, as in a deployment.
func ExampleServer_Kill() {
	relay := smtptest.NewServer()
	defer relay.Close()

	relay.Kill()
	fmt.Println("refused:", SendWelcome(relay.Addr, "bob@example.com") != nil)
	if err := relay.Restart(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("refused:", SendWelcome(relay.Addr, "bob@example.com") != nil)
	// Output:
	// refused: true
	// refused: false
}

// The transcript says what was said; it goes well with t.Log.
func ExampleServer_Transcript() {
	network := smtptest.NewNetwork()
	relay := network.NewServer("relay.test:25", smtptest.WithExtensions("8BITMIME"))
	nc, err := network.DialContext(context.Background(), "tcp", relay.Addr)
	if err != nil {
		log.Fatal(err)
	}
	c, err := smtp.NewClient(nc, "relay.test")
	if err != nil {
		log.Fatal(err)
	}
	c.Verify("bob")
	c.Quit()
	relay.Close() // waits for the end of the conversation

	fmt.Print(relay.Transcript())
	// Output:
	// -- connection 1 from client:40001
	// S: 220 relay.test ESMTP smtptest
	// C: EHLO localhost
	// S: 250-relay.test
	// S: 250 8BITMIME
	// C: VRFY bob
	// S: 252 Cannot VRFY user, but will accept mail for delivery
	// C: QUIT
	// S: 221 Bye
	// -- closed in good order
}
