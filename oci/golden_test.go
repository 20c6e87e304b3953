package oci

import "flag"

// update makes the golden tests write what they got: go test ./oci -update.
var update = flag.Bool("update", false, "write the golden files instead of comparing with them")
