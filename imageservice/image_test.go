package imageservice

import (
	"errors"
	"testing"
)

func TestUser(t *testing.T) {
	for _, c := range []struct {
		user string
		uid  int64 // -1: none
		name string
		err  error
	}{
		{"", -1, "", nil},
		{":100", -1, "", nil},
		{"0", 0, "", nil},
		{"000", 0, "", nil},
		{"1000:web", 1000, "", nil},
		{"2147483647", 2147483647, "", nil},
		{"2147483648", -1, "", ErrUnsupported},
		{"4294967296:0", -1, "", ErrUnsupported},
		{"99999999999999999999", -1, "", ErrUnsupported},
		{"-1", -1, "-1", nil},
		{"+0", -1, "+0", nil},
		{" 0", -1, " 0", nil},
		{"0x0", -1, "0x0", nil},
		{"1_0", -1, "1_0", nil},
		{"\u0661", -1, "\u0661", nil}, // a digit, but not ASCII
		{"web:web", -1, "web", nil},
	} {
		image := &Image{}
		image.Config.Config.User = c.user
		uid, name, err := image.User()
		if !errors.Is(err, c.err) || (uid != nil) != (c.uid >= 0) || uid != nil && *uid != c.uid || name != c.name {
			t.Errorf("%q: got %v, %q, %v", c.user, uid, name, err)
		}
	}
}
