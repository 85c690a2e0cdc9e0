package smtptest

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"time"
)

// How an AUTH exchange can fail; any other error ends the connection.
var (
	errBadCredentials = errors.New("bad credentials")
	errCancelled      = errors.New("cancelled by the client")
	errBadEncoding    = errors.New("bad base64")
	errAnswered       = errors.New("answered by the script")
)

// A mechanism asks the client until it knows the user. initial is the client's
// initial response, nil if there was none.
type mechanism func(c *conn, initial []byte) (user string, err error)

var authMechanisms map[string]mechanism

func init() { // not a composite literal: the mechanisms lead back to it
	authMechanisms = map[string]mechanism{
		"PLAIN":       authPlain,
		"LOGIN":       authLogin,
		"CRAM-MD5":    authCramMD5,
		"XOAUTH2":     authXOAuth2,
		"SCRAM-SHA-1": func(c *conn, initial []byte) (string, error) { return authScram(c, initial, "SCRAM-SHA-1", sha1.New) },
		"SCRAM-SHA-256": func(c *conn, initial []byte) (string, error) {
			return authScram(c, initial, "SCRAM-SHA-256", sha256.New)
		},
	}
}

// auth carries out AUTH (RFC 4954).
func (c *conn) auth(args string) error {
	f := strings.Fields(args)
	code, answered, err := c.at(Auth)
	switch {
	case err != nil:
		return err
	case answered:
		switch {
		case code == 235:
			c.authed = true
			c.s.count.auths.Add(1)
		case code >= 400:
			c.s.count.authFailures.Add(1)
		}
		return nil
	case len(c.s.cfg.mechanisms) == 0:
		c.reply(502, "5.5.1", "AUTH is not offered")
		return nil
	case !c.authOffered():
		c.reply(538, "5.7.11", "Encryption is required for AUTH")
		return nil
	case !c.esmtp, c.inMail, c.authed:
		c.reply(503, "5.5.1", "AUTH is not possible now")
		return nil
	case len(f) == 0 || len(f) > 2:
		c.reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
		return nil
	}
	name := strings.ToUpper(f[0])
	run := authMechanisms[name]
	if !c.offersMechanism(name) {
		c.reply(504, "5.5.4", "Mechanism is not offered")
		c.s.count.authFailures.Add(1)
		return nil
	}
	var initial []byte
	if len(f) == 2 {
		if initial, err = decodeResponse(f[1]); err != nil {
			c.reply(501, "5.5.2", "Bad base64")
			c.s.count.authFailures.Add(1)
			return nil
		}
	}
	user, err := run(c, initial)
	switch err {
	case nil:
		c.authed, c.user = true, user
		c.s.count.auths.Add(1)
		c.reply(235, "2.7.0", "Authentication successful")
		return nil
	case errBadCredentials:
		c.reply(535, "5.7.8", "Authentication credentials invalid")
	case errCancelled:
		c.reply(501, "5.7.0", "Authentication cancelled")
	case errBadEncoding:
		c.reply(501, "5.5.2", "Bad base64")
	case errAnswered:
	default:
		return err
	}
	c.s.count.authFailures.Add(1)
	return nil
}

func (c *conn) offersMechanism(name string) bool {
	for _, m := range c.s.cfg.mechanisms {
		if m == name {
			return true
		}
	}
	return false
}

// decodeResponse decodes a client's response; "=" is the empty one. The result is
// not nil.
func decodeResponse(s string) ([]byte, error) {
	if s == "=" || s == "" {
		return []byte{}, nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, errBadEncoding
	}
	return b, nil
}

// challenge sends a challenge and returns the client's response.
func (c *conn) challenge(text string) ([]byte, error) {
	code, answered, err := c.at(AuthChallenge)
	if err != nil {
		return nil, err
	}
	if answered && code != 334 {
		return nil, errAnswered
	}
	if !answered {
		c.replyText(334, base64.StdEncoding.EncodeToString([]byte(text)))
	}
	if err := c.settle(); err != nil {
		return nil, err
	}
	line, crlf, long, err := c.readLine(maxAuthLine, c.s.cfg.idle)
	if err == errIdle {
		return nil, c.timeout()
	} else if err != nil {
		return nil, err
	}
	switch {
	case string(line) == "*":
		c.transcript.client(line)
		return nil, errCancelled
	case long || !crlf:
		c.transcript.client([]byte("<redacted>"))
		return nil, errBadEncoding
	}
	c.transcript.client([]byte("<redacted>"))
	return decodeResponse(string(line))
}

// password returns a user's password.
func (s *Server) password(user string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.passwords[user]
	return p, ok
}

func (s *Server) checkPassword(user, pass string) (string, error) {
	want, ok := s.password(user)
	if !ok || subtle.ConstantTimeCompare([]byte(want), []byte(pass)) != 1 {
		return "", errBadCredentials
	}
	return user, nil
}

// authPlain is RFC 4616.
func authPlain(c *conn, initial []byte) (string, error) {
	if initial == nil {
		var err error
		if initial, err = c.challenge(""); err != nil {
			return "", err
		}
	}
	f := strings.Split(string(initial), "\x00")
	if len(f) != 3 || f[0] != "" && f[0] != f[1] {
		return "", errBadCredentials
	}
	return c.s.checkPassword(f[1], f[2])
}

func authLogin(c *conn, initial []byte) (string, error) {
	if initial == nil {
		var err error
		if initial, err = c.challenge("Username:"); err != nil {
			return "", err
		}
	}
	name := string(initial)
	pass, err := c.challenge("Password:")
	if err != nil {
		return "", err
	}
	return c.s.checkPassword(name, string(pass))
}

// authCramMD5 is RFC 2195.
func authCramMD5(c *conn, initial []byte) (string, error) {
	if initial != nil {
		return "", errBadCredentials
	}
	challenge := fmt.Sprintf("<%s.%d@%s>", newNonce(), time.Now().Unix(), c.s.cfg.hostname)
	resp, err := c.challenge(challenge)
	if err != nil {
		return "", err
	}
	i := strings.LastIndexByte(string(resp), ' ')
	if i < 0 {
		return "", errBadCredentials
	}
	name := string(resp[:i])
	pass, ok := c.s.password(name)
	mac := hmac.New(md5.New, []byte(pass))
	mac.Write([]byte(challenge))
	if !ok || !hmac.Equal([]byte(hex.EncodeToString(mac.Sum(nil))), resp[i+1:]) {
		return "", errBadCredentials
	}
	return name, nil
}

// authXOAuth2 is Google's and Microsoft's SASL XOAUTH2. A refusal comes as a
// challenge with a JSON text, to which the client answers before it gets its 535.
func authXOAuth2(c *conn, initial []byte) (string, error) {
	if initial == nil {
		var err error
		if initial, err = c.challenge(""); err != nil {
			return "", err
		}
	}
	var name, token string
	for f := range strings.SplitSeq(string(initial), "\x01") {
		if v, ok := strings.CutPrefix(f, "user="); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(f, "auth=Bearer "); ok {
			token = v
		}
	}
	name, err := c.s.checkPassword(name, token)
	if err != nil {
		if _, cerr := c.challenge(`{"status":"401","schemes":"bearer","scope":"https://mail.example.com/"}`); cerr != nil {
			return "", cerr
		}
	}
	return name, err
}

type scramConfig struct {
	iterations                int
	noSignature, badSignature bool
}

// saltedKey names a salted password, which is worth keeping.
type saltedKey struct {
	mechanism, pass string
	iterations      int
}

// authScram is RFC 5802 and 7677, without channel binding.
func authScram(c *conn, initial []byte, name string, newHash func() hash.Hash) (string, error) {
	if initial == nil {
		var err error
		if initial, err = c.challenge(""); err != nil {
			return "", err
		}
	}
	// n,,n=user,r=nonce
	gs2, bare, ok := cutGS2(string(initial))
	attrs := scramAttrs(bare)
	user, nonce := scramName(attrs["n"]), attrs["r"]
	if !ok || user == "" || nonce == "" {
		return "", errBadCredentials
	}
	cfg := c.s.cfg.scram
	nonce += newNonce()
	first := "r=" + nonce + ",s=" + base64.StdEncoding.EncodeToString(c.s.salt) + ",i=" + strconv.Itoa(cfg.iterations)
	resp, err := c.challenge(first)
	if err != nil {
		return "", err
	}
	// c=biws,r=nonce,p=proof
	i := strings.LastIndex(string(resp), ",p=")
	if i < 0 {
		return "", errBadCredentials
	}
	final := string(resp[:i])
	attrs = scramAttrs(final)
	proof, err := base64.StdEncoding.DecodeString(string(resp[i+3:]))
	if err != nil || attrs["r"] != nonce || attrs["c"] != base64.StdEncoding.EncodeToString([]byte(gs2)) {
		return "", errBadCredentials
	}
	pass, known := c.s.password(user)
	salted, err := c.s.saltedPassword(name, pass, cfg.iterations, newHash)
	if err != nil {
		return "", errBadCredentials
	}
	message := []byte(bare + "," + first + "," + final)
	clientKey := mac(newHash, salted, []byte("Client Key"))
	h := newHash()
	h.Write(clientKey)
	signature := mac(newHash, h.Sum(nil), message)
	if !known || len(proof) != len(clientKey) {
		return "", errBadCredentials
	}
	subtle.XORBytes(signature, signature, proof)
	if subtle.ConstantTimeCompare(signature, clientKey) != 1 {
		return "", errBadCredentials
	}
	if cfg.noSignature {
		return user, nil
	}
	server := mac(newHash, mac(newHash, salted, []byte("Server Key")), message)
	if cfg.badSignature {
		server[0] ^= 1
	}
	// RFC 4954 §4: a success with data is a challenge that the client answers empty.
	if _, err := c.challenge("v=" + base64.StdEncoding.EncodeToString(server)); err != nil {
		return "", err
	}
	return user, nil
}

// saltedPassword is RFC 5802's Hi, computed only once the client has answered: a
// count that a client refuses costs the server nothing.
func (s *Server) saltedPassword(mechanism, pass string, iterations int, newHash func() hash.Hash) ([]byte, error) {
	key := saltedKey{mechanism, pass, iterations}
	s.mu.Lock()
	salted := s.salted[key]
	s.mu.Unlock()
	if salted != nil {
		return salted, nil
	}
	salted, err := pbkdf2.Key(newHash, pass, s.salt, iterations, newHash().Size())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.salted[key] = salted
	return salted, nil
}

// cutGS2 splits off the GS2 header. Channel binding ("p=…") is not offered.
func cutGS2(s string) (header, bare string, ok bool) {
	f := strings.SplitN(s, ",", 3)
	if len(f) < 3 || f[0] != "n" && f[0] != "y" {
		return "", "", false
	}
	return f[0] + "," + f[1] + ",", f[2], true
}

func scramAttrs(s string) map[string]string {
	attrs := make(map[string]string)
	for f := range strings.SplitSeq(s, ",") {
		if k, v, ok := strings.Cut(f, "="); ok {
			attrs[k] = v
		}
	}
	return attrs
}

func scramName(s string) string {
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s)
}

func mac(newHash func() hash.Hash, key, data []byte) []byte {
	m := hmac.New(newHash, key)
	m.Write(data)
	return m.Sum(nil)
}

func newNonce() string { return rand.Text() }

func newSalt() []byte {
	salt := make([]byte, 16)
	rand.Read(salt) // never fails
	return salt
}
