package domain

import (
	"cmp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// This file holds what mail systems take for the same mailbox although it is written otherwise: in another case, with another extension.

// mailbox looks for an address among those that are loose: as it is, then without its extension. host begins with the @.
func (t *Table) mailbox(local, host, sender, stream string) (value int32, ok bool) {
	var buf [maxAddress + maxLocal]byte // without an allocation: folding makes a local part longer by half at the most
	if n, ok := t.loose[string(append(appendFolded(buf[:0], local), host...))]; ok {
		if v, ok := n.find(sender, stream); ok {
			return v, true
		}
	}
	plain := unquoteLocal(local)
	bare, ok := withoutExtension(plain, t.delimiter)
	if !ok {
		return 0, false
	}
	if len(plain) != len(local) || bare[len(bare)-1] == '.' {
		bare = quoteLocal(bare) // which costs an allocation, as some take: they are rare
	}
	n, ok := t.loose[string(append(appendFolded(buf[:0], bare), host...))]
	if !ok {
		return 0, false
	}
	return n.find(sender, stream)
}

// Patterns returns the patterns of recipients that say in a Table what an entry of the map says in it, with rules for addresses that are loose. There are none where Lookup never comes to the entry: because
// another one is asked before it, or because no address can be that long.
//
// Postfix asks for a mailbox with its quotes, then without. So a key that has quotes stands for two mailboxes: one whose name needs them, and one whose name has them.
func (m *TransportMap) Patterns(t *Transport) (patterns []string) {
	key := cmp.Or(t.As, t.Key)
	at := strings.LastIndexByte(key, '@')
	switch {
	case key[0] == '.' && at < 0:
		return []string{"*" + key}
	case at < 0:
		return []string{key}
	}
	local, host := key[:at], key[at:]
	if a, reason := parse(key); reason == "" && a.Local == local {
		if local == "*" {
			patterns = append(patterns, `"*"`+host) // or it would seem to be meant for everybody
		} else {
			patterns = append(patterns, key)
		}
	}
	quoted := quoteLocal(local)
	if quoted == local {
		return patterns
	}
	if _, taken := m.index[foldLocal(quoted)+host]; taken {
		return patterns
	}
	if _, reason := parse(quoted + host); reason == "" {
		patterns = append(patterns, quoted+host)
	}
	return patterns
}

// withoutExtension cuts the extension off a local part without quotes, if it has one. Postfix leaves some alone, which matters
// where the delimiter is a hyphen: owner-list and list-request, and the mailboxes that it writes itself.
func withoutExtension(local string, delimiter byte) (bare string, ok bool) {
	i := strings.IndexByte(local, delimiter)
	if delimiter == 0 || i <= 0 {
		return "", false
	}
	for _, own := range []string{"postmaster", "mailer-daemon", "double-bounce"} {
		if strings.EqualFold(local, own) {
			return "", false
		}
	}
	if delimiter == '-' {
		lower := strings.ToLower(local)
		if strings.HasPrefix(lower, "owner-") || strings.HasSuffix(lower, "-request") && lower != "-request" {
			return "", false
		}
	}
	return local[:i], true
}

// unquoteLocal returns a canonical local part without its quotes and backslashes.
func unquoteLocal(local string) string {
	if len(local) < 2 || local[0] != '"' {
		return local
	}
	plain := make([]byte, 0, len(local))
	for i := 1; i < len(local)-1; i++ {
		if local[i] == '\\' {
			i++
		}
		plain = append(plain, local[i])
	}
	return string(plain)
}

// quoteLocal undoes unquoteLocal.
func quoteLocal(plain string) string {
	if end, _, reason := dotString(plain + "@"); reason == "" && end == len(plain) {
		return plain
	}
	quoted := make([]byte, 0, len(plain)+2)
	quoted = append(quoted, '"')
	for i := range len(plain) {
		if plain[i] == '"' || plain[i] == '\\' {
			quoted = append(quoted, '\\')
		}
		quoted = append(quoted, plain[i])
	}
	return string(append(quoted, '"'))
}

// foldLocal returns what all local parts have in common that strings.EqualFold takes for the same: instead of each character the
// lower case of the least of those that differ from it in nothing but case.
func foldLocal(s string) string {
	plain := true
	for i := range len(s) {
		plain = plain && s[i] < utf8.RuneSelf && class[s[i]]&isUpper == 0
	}
	if plain {
		return s
	}
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return unicode.ToLower(least)
	}, s)
}

// appendFolded appends what foldLocal returns.
func appendFolded(dst []byte, s string) []byte {
	for i := range len(s) {
		b := s[i]
		if b >= utf8.RuneSelf {
			return append(dst[:len(dst)-i], foldLocal(s)...)
		}
		if class[b]&isUpper != 0 {
			b += 'a' - 'A'
		}
		dst = append(dst, b)
	}
	return dst
}
