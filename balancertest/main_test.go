package balancertest

import (
	"flag"
	"os"
	"testing"
)

// TestMain has fewer relays under the race detector: four words of Skip are many, too.
func TestMain(m *testing.M) {
	flag.Parse()
	if !thorough() {
		sizes[len(sizes)-1] = 200
	}
	os.Exit(m.Run())
}
