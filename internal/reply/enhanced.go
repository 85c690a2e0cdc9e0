package reply

import "strconv"

// parseEnhanced reads an enhanced status code (RFC 3463 §2, RFC 2034 §4) at the start of a line's text. One whose class is not the
// reply's is none.
func parseEnhanced(b []byte, class byte) Enhanced {
	if len(b) < 5 || b[0] != class || b[1] != '.' || class != '2' && class != '4' && class != '5' {
		return Enhanced{}
	}
	subject, b, ok := threeDigits(b[2:])
	if !ok || len(b) == 0 || b[0] != '.' {
		return Enhanced{}
	}
	detail, b, ok := threeDigits(b[1:])
	if !ok || len(b) > 0 && b[0] != ' ' && b[0] != '\t' {
		return Enhanced{}
	}
	return Enhanced{Class: uint16(class - '0'), Subject: subject, Detail: detail}
}

// threeDigits reads a number of one to three digits.
func threeDigits(b []byte) (n uint16, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && i < 3 && b[i] >= '0' && b[i] <= '9'; i++ {
		n = n*10 + uint16(b[i]-'0')
	}
	return n, b[i:], i > 0
}

// IsZero reports whether there is no enhanced code.
func (e Enhanced) IsZero() bool { return e == Enhanced{} }

// String returns the code as it is written in a reply, such as "4.7.1", and "" for none.
func (e Enhanced) String() string {
	if e.IsZero() {
		return ""
	}
	var a [len("65535.65535.65535")]byte
	b := strconv.AppendUint(a[:0], uint64(e.Class), 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(e.Subject), 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(e.Detail), 10)
	return string(b)
}
