package container

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Init does what a container's first process has to if this process is one.
// It is called before all else, and then does not return.
func Init() {
	if os.Args[0] != initName {
		return
	}
	runtime.LockOSThread()
	err := initialize()
	// Only if the container's program does not run does this go on.
	complaints := os.NewFile(errorDescriptor, "complaints")
	fmt.Fprint(complaints, err)
	os.Exit(128)
}

func initialize() error {
	unix.CloseOnExec(errorDescriptor)
	text := os.NewFile(specDescriptor, "spec")
	var spec Spec
	if err := json.NewDecoder(text).Decode(&spec); err != nil {
		return fmt.Errorf("what to start: %w", err)
	}
	text.Close()
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("the host name: %w", err)
	}
	if err := enterRoot(spec); err != nil {
		return err
	}
	directory := spec.WorkingDirectory
	if directory == "" {
		directory = "/"
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return fmt.Errorf("the working directory: %w", err)
	}
	if spec.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("the read-only root: %w", err)
		}
	}
	if err := spec.assume(); err != nil {
		return err
	}
	if err := syscall.Setgroups(ints(spec.Groups)); err != nil {
		return fmt.Errorf("the groups: %w", err)
	}
	if err := syscall.Setresgid(int(spec.Group), int(spec.Group), int(spec.Group)); err != nil {
		return fmt.Errorf("the group: %w", err)
	}
	if err := syscall.Setresuid(int(spec.User), int(spec.User), int(spec.User)); err != nil {
		return fmt.Errorf("the user: %w", err)
	}
	if err := os.Chdir(directory); err != nil {
		return fmt.Errorf("the working directory: %w", err)
	}
	program, err := find(spec.Args[0], spec.Env)
	if err != nil {
		return err
	}
	err = unix.Exec(program, spec.Args, spec.Env)
	return fmt.Errorf("exec %s: %w", program, err)
}

// assume limits what the calling thread, and whatever it becomes, may do.
func (credentials Credentials) assume() error {
	kept := map[uintptr]bool{}
	for _, capability := range credentials.Capabilities {
		kept[capability] = true
	}
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		if kept[capability] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("capability %d: %w", capability, err)
		}
	}
	if credentials.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
	}
	return nil
}

// find finds a program as a shell does, in the file system that the thread sees.
func find(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, variable := range env {
		if value, found := strings.CutPrefix(variable, "PATH="); found {
			path = value
		}
	}
	for _, directory := range filepath.SplitList(path) {
		candidate := filepath.Join(directory, program)
		if info, err := os.Stat(candidate); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", program)
}

func ints(numbers []uint32) []int {
	result := make([]int, len(numbers))
	for index, number := range numbers {
		result[index] = int(number)
	}
	return result
}
