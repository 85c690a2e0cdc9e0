// Package reply reads and understands one SMTP reply (RFC 5321 §4.2). It is strict where leniency loses mail
// (a code that changes between lines is an error, not a success) and bounded everywhere.
package reply

// Enhanced is an enhanced status code (RFC 3463), such as 4.7.1. The zero value means that the reply had none.
type Enhanced struct{ Class, Subject, Detail uint16 }

// A Reply is one whole reply of a relay. The zero value means that there was none.
type Reply struct {
	Code     int      // 200 to 599
	Enhanced Enhanced // its class always equals the first digit of Code; read even where the relay did not advertise it
	Text     string   // the text of all lines as the relay sent it, without the codes at the lines' starts but with the enhanced codes, joined by "\n"; not quoted
}

// Positive reports whether the reply is a 2xx.
func (r Reply) Positive() bool { return r.Code >= 200 && r.Code <= 299 }

// Intermediate reports whether the reply is a 3xx.
func (r Reply) Intermediate() bool { return r.Code >= 300 && r.Code <= 399 }

// Temporary reports whether the reply is a 4xx.
func (r Reply) Temporary() bool { return r.Code >= 400 && r.Code <= 499 }

// Permanent reports whether the reply is a 5xx.
func (r Reply) Permanent() bool { return r.Code >= 500 && r.Code <= 599 }
