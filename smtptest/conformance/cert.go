package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"sync"
	"time"
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// ca is made once for the process, so that a Sender that reads its roots once can trust it.
var ca = sync.OnceValue(func() authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "smtptest/conformance"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	return authority{must(x509.ParseCertificate(der)), key}
})

// Authority returns the root certificate that the relays' certificates are signed by. It
// is made anew for each process.
func Authority() *x509.Certificate { return ca().cert }

// clientTLS returns what a Sender is given.
func clientTLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(Authority())
	return &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

// certificate returns a certificate for a host that Authority has signed.
func certificate(host string) tls.Certificate { return mint(host, time.Now().AddDate(1, 0, 0)) }

func mint(host string, until time.Time) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{host}
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, ca().cert, key.Public(), ca().key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))}
}

// must returns v. What can go wrong here is the system's random source.
func must[T any](v T, err error) T {
	if err != nil {
		panic("smtptest/conformance: " + err.Error())
	}
	return v
}
