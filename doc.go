// Package smtplb spreads an application's outgoing mail over several SMTP relays.
package smtplb
