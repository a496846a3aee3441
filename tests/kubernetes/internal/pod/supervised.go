package pod

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"heddle.dev/tests/kubernetes/internal/container"
)

// The pause before a container that failed starts again doubles from the first
// to the longest, and starts over once it ran well. The kubelet's are ten times
// as long; a test should not have to wait for them.
const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
	ranWell      = time.Minute
)

// supervised is a container that is started, probed, restarted and ended as its pod says.
type supervised struct {
	worker  *Worker
	spec    *corev1.Container
	policy  corev1.RestartPolicy
	sidecar bool

	// ending is closed when the container is to end by deadline.
	ending   chan struct{}
	endOnce  sync.Once
	deadline time.Time
	// begun is closed when it has started for the first time: the next may follow.
	begun     chan struct{}
	begunOnce sync.Once
	// hooked is closed when its first start is over, hook included, however that went: the next of the
	// ordinary containers may start.
	hooked     chan struct{}
	hookedOnce sync.Once
	// done is closed when it will not run again.
	done chan struct{}

	// The rest is under the worker's lock.
	launched bool
	process  *container.Process
	state    corev1.ContainerState
	last     corev1.ContainerState
	restarts int32
	ready    bool
	started  bool
}

func newSupervised(worker *Worker, spec *corev1.Container, policy corev1.RestartPolicy, sidecar bool) *supervised {
	return &supervised{
		worker: worker, spec: spec, policy: policy, sidecar: sidecar,
		ending: make(chan struct{}), begun: make(chan struct{}), hooked: make(chan struct{}), done: make(chan struct{}),
	}
}

// supervise runs the container until it will not run again.
func (one *supervised) supervise() {
	one.worker.mutex.Lock()
	one.launched = true
	one.worker.mutex.Unlock()
	defer close(one.done)
	pause := firstPause
	for first := true; ; first = false {
		if !first {
			select {
			case <-one.ending:
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, longestPause)
		}
		select {
		case <-one.ending:
			return
		default:
		}
		begun := time.Now()
		reason, err := one.start()
		if err != nil {
			one.hookedOnce.Do(func() { close(one.hooked) })
			one.change(func() {
				one.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: err.Error()}}
			})
			continue
		}
		again := one.runOnce()
		if !again {
			return
		}
		if time.Since(begun) > ranWell {
			pause = firstPause
		}
		one.change(func() {
			one.last = one.state
			one.restarts++
			message := fmt.Sprintf("back-off %s restarting failed container", pause)
			one.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: message}}
		})
	}
}

// start starts the process, or says with a reason for the status why it does not.
func (one *supervised) start() (string, error) {
	spec, reason, err := one.describe()
	if err != nil {
		return reason, err
	}
	if err := os.MkdirAll(spec.Directory, 0o755); err != nil {
		return "CreateContainerError", err
	}
	output, err := os.OpenFile(one.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return "CreateContainerError", err
	}
	defer output.Close()
	process, err := container.Start(spec, one.worker.sandbox.Namespace, output)
	if err != nil {
		return "RunContainerError", err
	}
	one.change(func() {
		one.process = process
		one.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(process.Started)}}
	})
	return "", nil
}

// runOnce follows a process that was started to its end, and says whether another is to follow.
func (one *supervised) runOnce() bool {
	process := one.process
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Probes other than readiness end when the container is about to.
	alive, dying := context.WithCancel(ctx)
	defer dying()
	failed := make(chan time.Duration, 1)
	go one.attend(ctx, alive, process, failed)
	select {
	case <-process.Done():
	case <-one.ending:
		dying()
		one.terminate(process, one.deadline)
	case grace := <-failed:
		dying()
		one.terminate(process, time.Now().Add(grace))
	}
	code, signal := process.Exit()
	cancel()
	one.change(func() {
		one.process, one.ready, one.started = nil, false, false
		one.state = corev1.ContainerState{Terminated: one.terminated(process, code, signal)}
	})
	select {
	case <-one.ending:
		return false
	default:
	}
	return one.policy == corev1.RestartPolicyAlways || (one.policy == corev1.RestartPolicyOnFailure && code != 0)
}

// terminate has a process end, and kills it at the deadline or when its pod is killed.
func (one *supervised) terminate(process *container.Process, deadline time.Time) {
	if hook := one.spec.Lifecycle; hook != nil && hook.PreStop != nil {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		_ = one.runHook(ctx, process, hook.PreStop)
		cancel()
	}
	signal := syscall.SIGTERM
	process.Signal(signal)
	select {
	case <-process.Done():
		return
	case <-one.worker.kill:
	case <-time.After(time.Until(deadline)):
	}
	process.Signal(syscall.SIGKILL)
	<-process.Done()
}

// end has the container end by a deadline, and not start again.
func (one *supervised) end(deadline time.Time) {
	one.endOnce.Do(func() {
		one.deadline = deadline
		close(one.ending)
	})
}

// wait waits for the end of a container that was ever started.
func (one *supervised) wait() {
	one.worker.mutex.Lock()
	launched := one.launched
	one.worker.mutex.Unlock()
	if launched {
		<-one.done
	}
}

func (one *supervised) succeeded() bool {
	one.worker.mutex.Lock()
	defer one.worker.mutex.Unlock()
	return one.state.Terminated != nil && one.state.Terminated.ExitCode == 0
}

// change changes the container's state and has it published.
func (one *supervised) change(how func()) {
	one.worker.mutex.Lock()
	how()
	one.worker.mutex.Unlock()
	signal(one.worker.changed)
}

func (one *supervised) terminated(process *container.Process, code, signal int) *corev1.ContainerStateTerminated {
	reason, message := "Completed", ""
	if code != 0 {
		reason, message = "Error", tail(one.LogPath(), 1024)
	}
	return &corev1.ContainerStateTerminated{
		ExitCode: int32(code), Signal: int32(signal), Reason: reason, Message: message,
		StartedAt: metav1.NewTime(process.Started), FinishedAt: metav1.Now(),
	}
}

// LogPath is the file of what all runs of the container wrote.
func (one *supervised) LogPath() string {
	return filepath.Join(one.worker.directory, one.spec.Name+".log")
}

// tail is the end of a file: what a program said last says most.
func tail(path string, length int64) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > length {
		if _, err := file.Seek(-length, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(io.LimitReader(file, length))
	if err != nil {
		return ""
	}
	return string(text)
}
