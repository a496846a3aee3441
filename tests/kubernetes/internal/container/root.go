package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// machine is where the machine's files are while the container's are mounted.
const machine = "/.machine"

// enterRoot makes the container's file system and makes it the process's own.
func enterRoot(spec Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	root := filepath.Join(spec.Directory, "root")
	if err := mountRoot(spec, root); err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	if err := os.MkdirAll(root+machine, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, root+machine); err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// From here on links lead to where they do in the container.
	if err := mountSystem(spec); err != nil {
		return err
	}
	targets := make([]string, 0, len(spec.Files))
	for target := range spec.Files {
		targets = append(targets, target)
	}
	sort.Strings(targets)
	for _, target := range targets {
		if err := bind(Mount{Source: spec.Files[target], Target: target, ReadOnly: true}); err != nil {
			return err
		}
	}
	for _, mount := range spec.Mounts {
		if err := bind(mount); err != nil {
			return err
		}
	}
	if err := unix.Unmount(machine, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("the machine's files: %w", err)
	}
	return os.Remove(machine)
}

// mountRoot mounts what the container's root is before anything is mounted into it.
func mountRoot(spec Spec, root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if !spec.Machine {
		return unix.Mount(root, root, "", unix.MS_BIND, "")
	}
	upper, work := filepath.Join(spec.Directory, "upper"), filepath.Join(spec.Directory, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	return unix.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work))
}

// mountSystem mounts what every container has: processes, devices, the kernel's settings.
func mountSystem(spec Spec) error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []struct {
		target, kind, options string
		flags                 uintptr
	}{
		{"/proc", "proc", "", quiet},
		{"/sys", "sysfs", "", quiet | unix.MS_RDONLY},
		{"/dev", "tmpfs", "mode=755,size=64k", unix.MS_NOSUID},
		{"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=620", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/dev/shm", "tmpfs", "mode=1777,size=64m", quiet},
	}
	if spec.Machine {
		// What others left there is none of the container's business.
		for _, target := range []string{"/tmp", "/run"} {
			mounts = append(mounts, struct {
				target, kind, options string
				flags                 uintptr
			}{target, "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV})
		}
	}
	for _, mount := range mounts {
		if err := os.MkdirAll(mount.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(mount.kind, mount.target, mount.kind, mount.flags, mount.options); err != nil {
			return fmt.Errorf("%s: %w", mount.target, err)
		}
	}
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := bind(Mount{Source: "/dev/" + device, Target: "/dev/" + device}); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// bind mounts a file or a folder of the machine where the container wants it.
func bind(mount Mount) error {
	source := machine + mount.Source
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("%s: %w", mount.Source, err)
	}
	if info.IsDir() {
		err = os.MkdirAll(mount.Target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(mount.Target), 0o755); err == nil {
		var file *os.File
		if file, err = os.OpenFile(mount.Target, os.O_CREATE, 0o644); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("the mount point %s: %w", mount.Target, err)
	}
	if err := unix.Mount(source, mount.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("%s at %s: %w", mount.Source, mount.Target, err)
	}
	if !mount.ReadOnly {
		return nil
	}
	if err := unix.Mount("", mount.Target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("%s read-only: %w", mount.Target, err)
	}
	return nil
}
