package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"

	"github.com/vishvananda/netns"

	"heddle.dev/tests/kubernetes/internal/container"
)

// Exec runs a command in one of the pod's containers until it ends, or the context does.
func (worker *Worker) Exec(ctx context.Context, name string, args []string, input io.Reader, output, errorOutput io.Writer) error {
	one := worker.find(name)
	if one == nil {
		return fmt.Errorf("there is no container %q", name)
	}
	worker.mutex.Lock()
	process := one.process
	worker.mutex.Unlock()
	if process == nil {
		return container.ErrEnded
	}
	return process.Exec(ctx, args, input, output, errorOutput)
}

// Log is the file that one of the pod's containers writes to, and a channel
// that is closed once it writes no more.
func (worker *Worker) Log(name string) (string, <-chan struct{}, error) {
	one := worker.find(name)
	if one == nil {
		return "", nil, fmt.Errorf("there is no container %q", name)
	}
	return one.LogPath(), one.done, nil
}

// Dial connects to a port of the pod as one of its own processes would.
func (worker *Worker) Dial(port int32) (net.Conn, error) {
	worker.mutex.Lock()
	sandbox := worker.sandbox
	worker.mutex.Unlock()
	if sandbox == nil {
		return nil, errors.New("the pod has no network")
	}
	type dialled struct {
		connection net.Conn
		err        error
	}
	result := make(chan dialled)
	go func() {
		// The thread stays in the pod's namespace and is thrown away.
		runtime.LockOSThread()
		if sandbox.Namespace >= 0 {
			if err := netns.Set(sandbox.Namespace); err != nil {
				result <- dialled{nil, err}
				return
			}
		}
		connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		result <- dialled{connection, err}
	}()
	got := <-result
	return got.connection, got.err
}
