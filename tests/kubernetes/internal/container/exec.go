package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// drain is how long output is waited for that descendants of an ended command keep open.
const drain = 2 * time.Second

// ErrEnded says that a container no longer runs.
var ErrEnded = errors.New("the container does not run")

// Exec runs a command in the container, with its user and privileges, until it
// ends or the context does. The error is an *exec.ExitError if it ran and failed.
func (process *Process) Exec(ctx context.Context, args []string, input io.Reader, output, errorOutput io.Writer) error {
	if len(args) == 0 {
		return errors.New("there is no command")
	}
	var command *exec.Cmd
	err := onThread(func() error {
		if err := process.enter(); err != nil {
			return err
		}
		program, err := find(args[0], process.spec.Env)
		if err != nil {
			return err
		}
		if err := process.spec.assume(); err != nil {
			return err
		}
		command = exec.CommandContext(ctx, program)
		command.Args, command.Env, command.Dir = args, process.spec.Env, process.spec.WorkingDirectory
		if command.Dir == "" {
			command.Dir = "/"
		}
		command.Stdin, command.Stdout, command.Stderr = input, output, errorOutput
		command.WaitDelay = drain
		command.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: process.spec.User, Gid: process.spec.Group, Groups: process.spec.Groups},
			Setsid:     true,
		}
		return command.Start()
	})
	if err != nil {
		return err
	}
	if err := command.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return err
	}
	return nil
}

// enter brings the calling thread into the container's namespaces.
func (process *Process) enter() error {
	select {
	case <-process.done:
		return ErrEnded
	default:
	}
	// A thread that shares its root with others cannot change it.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	namespaces := []struct {
		name string
		kind int
	}{
		{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC},
		{"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
	}
	files := make([]*os.File, len(namespaces))
	for index, namespace := range namespaces {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", process.command.Process.Pid, namespace.name))
		if errors.Is(err, os.ErrNotExist) {
			return ErrEnded
		}
		if err != nil {
			return err
		}
		defer file.Close()
		files[index] = file
	}
	for index, namespace := range namespaces {
		if err := unix.Setns(int(files[index].Fd()), namespace.kind); err != nil {
			return fmt.Errorf("the container's namespace %s: %w", namespace.name, err)
		}
	}
	return nil
}
