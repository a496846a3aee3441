// Package conformance runs the Gateway API's own conformance suite, unmodified,
// as a test binary: `go test -c` makes it, the flags are the suite's own.
package conformance
