package limitertest_test

import (
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/limitertest"
)

func TestLocalLimiter(t *testing.T) {
	limitertest.Run(t, func(*testing.T) smtplb.Limiter { return smtplb.LocalLimiter() })
}
