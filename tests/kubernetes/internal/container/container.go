// Package container runs a process in namespaces of its own: mounts, processes,
// host name and messages; the network is its pod's. There are no control
// groups and no seccomp: limits of resources are not enforced.
//
// The process is started by this program itself, called as Init in the new
// namespaces, which makes the file system, gives up privileges and executes
// the container's program in its own place.
package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Spec is all that a container is started with.
type Spec struct {
	// Directory holds the container's own files: what it changes in its root.
	Directory string `json:"directory"`
	// Machine is whether the root shows the machine's files; else it is empty.
	Machine bool `json:"machine"`
	// Files by their path in the container: files of the machine.
	Files map[string]string `json:"files"`
	// Mounts in the order in which they are mounted.
	Mounts []Mount `json:"mounts"`
	// ReadOnly is whether the root cannot be written.
	ReadOnly bool   `json:"readOnly"`
	Hostname string `json:"hostname"`
	// Args are the program and its arguments, Env its whole environment.
	Args             []string `json:"args"`
	Env              []string `json:"env"`
	WorkingDirectory string   `json:"workingDirectory"`
	Credentials
}

// Credentials are whom a process runs as and what it may do.
type Credentials struct {
	User   uint32   `json:"user"`
	Group  uint32   `json:"group"`
	Groups []uint32 `json:"groups"`
	// Capabilities that the process cannot exceed, and that it has if its user is root.
	Capabilities []uintptr `json:"capabilities"`
	// NoNewPrivileges is whether programs cannot raise privileges by their files' marks.
	NoNewPrivileges bool `json:"noNewPrivileges"`
}

// Mount is a file or a folder of the machine that the container sees.
type Mount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly"`
}

// Process is a running container.
type Process struct {
	command *exec.Cmd
	spec    Spec
	// Started is when it was.
	Started time.Time
	done    chan struct{}
	code    int
	signal  int
}

// initName is how this program knows that it is to be a container's first process.
const initName = "container-init"

// The descriptors that Init is given.
const (
	specDescriptor  = 3
	errorDescriptor = 4
)

// Start starts a container in a network namespace (-1: the one of the caller)
// that writes to output, and returns once its program runs.
func Start(spec Spec, network netns.NsHandle, output *os.File) (*Process, error) {
	spec, err := spec.resolved()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	specRead, specWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specRead.Close()
	errorRead, errorWrite, err := os.Pipe()
	if err != nil {
		specWrite.Close()
		return nil, err
	}
	defer errorRead.Close()
	command := exec.Command("/proc/self/exe")
	command.Args = []string{initName}
	command.Stdout, command.Stderr = output, output
	command.ExtraFiles = []*os.File{specRead, errorWrite}
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	err = onThread(func() error {
		if network >= 0 {
			if err := unix.Setns(int(network), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("the pod's network: %w", err)
			}
		}
		return command.Start()
	})
	errorWrite.Close()
	if err != nil {
		specWrite.Close()
		return nil, err
	}
	_, writeError := specWrite.Write(text)
	specWrite.Close()
	complaint, readError := io.ReadAll(errorRead)
	if err := errors.Join(writeError, readError); err != nil || len(complaint) > 0 {
		_ = command.Process.Kill()
		_ = command.Wait()
		return nil, errors.Join(err, errors.New(string(complaint)))
	}
	process := &Process{command: command, spec: spec, Started: time.Now(), done: make(chan struct{})}
	go process.wait()
	return process, nil
}

// resolved is the spec with sources that are no links: in the container's own
// root a link may lead elsewhere.
func (spec Spec) resolved() (Spec, error) {
	files := make(map[string]string, len(spec.Files))
	for target, source := range spec.Files {
		path, err := filepath.EvalSymlinks(source)
		if err != nil {
			return spec, err
		}
		files[target] = path
	}
	mounts := slices.Clone(spec.Mounts)
	for index, mount := range mounts {
		path, err := filepath.EvalSymlinks(mount.Source)
		if err != nil {
			return spec, err
		}
		mounts[index].Source = path
	}
	spec.Files, spec.Mounts = files, mounts
	return spec, nil
}

func (process *Process) wait() {
	_ = process.command.Wait()
	status, known := process.command.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case known && status.Signaled():
		process.signal = int(status.Signal())
		process.code = 128 + process.signal
	default:
		process.code = process.command.ProcessState.ExitCode()
	}
	close(process.done)
}

// Done is closed when the process has ended.
func (process *Process) Done() <-chan struct{} {
	return process.done
}

// Exit is how the process ended: its code, and the signal that killed it or 0.
// It waits for the end.
func (process *Process) Exit() (code, signal int) {
	<-process.done
	return process.code, process.signal
}

// Signal sends a signal to the container's first process.
func (process *Process) Signal(signal syscall.Signal) {
	// It may have ended by itself.
	_ = process.command.Process.Signal(signal)
}

// onThread runs a function on a thread that is thrown away afterwards, as its
// namespaces or privileges will not be those of others.
func onThread(run func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- run()
	}()
	return <-result
}
