package imageservice

import "testing"

func TestUser(t *testing.T) {
	for _, c := range []struct {
		user string
		uid  int64 // -1: none
		name string
	}{
		{"", -1, ""},
		{":100", -1, ""},
		{"0", 0, ""},
		{"000", 0, ""},
		{"1000:web", 1000, ""},
		{"2147483647", 2147483647, ""},
		{"2147483648", -1, "2147483648"},
		{"4294967296:0", -1, "4294967296"},
		{"99999999999999999999", -1, "99999999999999999999"},
		{"-1", -1, "-1"},
		{"+0", -1, "+0"},
		{" 0", -1, " 0"},
		{"0x0", -1, "0x0"},
		{"1_0", -1, "1_0"},
		{"\u0661", -1, "\u0661"}, // a digit, but not ASCII
		{"web:web", -1, "web"},
	} {
		image := &Image{}
		image.Config.Config.User = c.user
		uid, name := image.User()
		if (uid != nil) != (c.uid >= 0) || uid != nil && *uid != c.uid || name != c.name {
			t.Errorf("%q: got %v, %q", c.user, uid, name)
		}
	}
}
