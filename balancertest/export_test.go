package balancertest

import (
	"fmt"

	"github.com/smtplb/smtplb"
)

// CheckCase is Check for one case.
func CheckCase(name string, newBalancer func() smtplb.Balancer) error {
	for _, c := range cases {
		if c.name == name {
			return c.run(newBalancer)
		}
	}
	panic(fmt.Sprintf("no case is named %q", name))
}

// CaseNames returns the names of all cases.
func CaseNames() (names []string) {
	for _, c := range cases {
		names = append(names, c.name)
	}
	return names
}
