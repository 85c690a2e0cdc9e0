package smtptest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"
)

// mint makes a self-signed certificate for names. It reads the clock, so that
// within a synctest bubble it is valid in the bubble's time.
func mint(names []string, expired bool) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("smtptest: key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("smtptest: serial number: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"smtptest"}, CommonName: serial.Text(36)},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true, // it is its own root
	}
	if expired {
		tmpl.NotBefore, tmpl.NotAfter = now.AddDate(0, 0, -30), now.AddDate(0, 0, -1)
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if n != "" {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("smtptest: certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("smtptest: certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// setupTLS readies the server's certificate. host is that of the address.
func (s *Server) setupTLS(host string) error {
	if s.cfg.tls == tlsOff {
		return nil
	}
	cert := s.cfg.cert
	if cert == nil {
		names := s.cfg.certNames
		if names == nil {
			names = []string{host, "localhost", "127.0.0.1", "::1"}
			if host == "localhost" || host == "127.0.0.1" || host == "::1" {
				names = names[1:]
			}
		}
		var err error
		if cert, err = mint(names, s.cfg.certExpired); err != nil {
			return err
		}
	}
	leaf := cert.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("smtptest: WithCertificate: %w", err)
		}
	}
	s.leaf = leaf
	s.tls = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
	return nil
}

// Certificate returns the server's certificate, nil without TLS.
func (s *Server) Certificate() *x509.Certificate { return s.leaf }

// ClientTLS returns a new client configuration that trusts the server's
// certificate and nothing else. ServerName is left to the client. Without TLS it
// is nil.
func (s *Server) ClientTLS() *tls.Config {
	if s.leaf == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.leaf)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}
