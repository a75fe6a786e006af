//go:build tools

// Package critest pins the suite that `make conformance` runs. It is a test program, which `go install path@version`
// cannot build; `go test -c` builds it from a module that requires it.
package critest

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
