// Command echo is the program of the conformance suite's mesh manifests: called
// as `server` it tells each client what its request was, called as `client` it
// sends requests and prints the answers. The suite names an image of Istio's,
// whose source is not to be had as a module of its own; flags and output are the
// same as far as the suite uses them.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "server":
		err = serve(os.Args[1:])
	case "client":
		err = request(os.Args[1:])
	default:
		err = fmt.Errorf("%s: call me server or client", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
