package container

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCapabilitiesAreDroppedBeforeTheyAreAdded(t *testing.T) {
	got, err := Capabilities(false, []string{"NET_ADMIN", "CAP_NET_RAW"}, []string{"ALL"})
	if err != nil || !slices.Equal(got, []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}) {
		t.Errorf("%v %v", got, err)
	}
	usual, err := Capabilities(false, nil, nil)
	if err != nil || slices.Contains(usual, unix.CAP_NET_ADMIN) || !slices.Contains(usual, unix.CAP_CHOWN) {
		t.Errorf("%v %v", usual, err)
	}
	all, err := Capabilities(true, nil, []string{"ALL"})
	if err != nil || len(all) != len(capabilities) {
		t.Errorf("%v %v", all, err)
	}
	if _, err := Capabilities(false, []string{"FLY"}, nil); err == nil {
		t.Error("nobody can")
	}
}
