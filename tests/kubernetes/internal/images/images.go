// Package images says what the images that pods name stand for: programs of
// this machine. There is no registry and nothing is pulled.
package images

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Roots that an image can have.
const (
	// RootMachine shows the machine's own files, and keeps what is written to
	// them for the container alone.
	RootMachine = "machine"
	// RootScratch has nothing but the image's files, as `FROM scratch`.
	RootScratch = "scratch"
)

// Image is what a container runs.
type Image struct {
	// Files by their path in the image: files of this machine.
	Files map[string]string `json:"files"`
	// Entrypoint is what the container's `command` replaces.
	Entrypoint []string `json:"entrypoint"`
	// Command is what the container's `args` replace.
	Command []string `json:"command"`
	// Env is what every container of the image has.
	Env map[string]string `json:"env"`
	// User and Group are whom the container runs as unless its pod says
	// otherwise.
	User  int64 `json:"user"`
	Group int64 `json:"group"`
	// Root is RootMachine, the default, or RootScratch.
	Root string `json:"root"`
}

// Catalogue holds images by their names without registry, tag and digest.
type Catalogue map[string]Image

// Read reads a catalogue from a file of JSON.
func Read(path string) (Catalogue, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var catalogue Catalogue
	if err := json.Unmarshal(text, &catalogue); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for name, image := range catalogue {
		if image.Root != "" && image.Root != RootMachine && image.Root != RootScratch {
			return nil, fmt.Errorf("%s: %s: root %q is neither %s nor %s", path, name, image.Root, RootMachine, RootScratch)
		}
	}
	return catalogue, nil
}

// Find finds the image that a reference names, whichever registry it is in:
// with its tag if the catalogue tells tags apart, else without.
func (catalogue Catalogue) Find(reference string) (Image, error) {
	name, _, _ := strings.Cut(reference, "@")
	// As container engines tell a registry from a folder of the default one.
	if host, path, found := strings.Cut(name, "/"); found && (strings.ContainsAny(host, ".:") || host == "localhost") {
		name = path
	}
	if image, found := catalogue[name]; found {
		return image, nil
	}
	if slash, colon := strings.LastIndex(name, "/"), strings.LastIndex(name, ":"); colon > slash {
		name = name[:colon]
	}
	if image, found := catalogue[name]; found {
		return image, nil
	}
	return Image{}, fmt.Errorf("image %q is not in the catalogue of this node", reference)
}
