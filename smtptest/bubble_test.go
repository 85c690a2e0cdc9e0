package smtptest_test

import "testing"

// TestFakeTimeExample runs what Example_fakeTime shows.
func TestFakeTimeExample(t *testing.T) { CheckGreylisting(t) }
