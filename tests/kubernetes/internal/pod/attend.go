package pod

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	tcpprobe "k8s.io/kubernetes/pkg/probe/tcp"

	"heddle.dev/tests/kubernetes/internal/container"
)

// attend does what follows a start: the hook, then the probes. Readiness is
// probed until ctx ends, the rest until alive does. A container that does not
// live is reported to failed with the time that it has to end.
func (one *supervised) attend(ctx, alive context.Context, process *container.Process, failed chan<- time.Duration) {
	fail := func(what string, grace *int64) {
		slog.Info("a container is restarted", "container", one.name(), "because of", what)
		period := gracePeriod(one.worker.seen())
		if grace != nil {
			period = time.Duration(*grace) * time.Second
		}
		select {
		case failed <- period:
		default:
		}
	}
	if hook := one.spec.Lifecycle; hook != nil && hook.PostStart != nil {
		if err := one.runHook(alive, process, hook.PostStart); err != nil && alive.Err() == nil {
			fail("its postStart hook: "+err.Error(), nil)
			one.hookedOnce.Do(func() { close(one.hooked) })
			return
		}
	}
	one.hookedOnce.Do(func() { close(one.hooked) })
	if startup := one.spec.StartupProbe; startup != nil {
		passed := false
		one.probeUntil(alive, process, startup, false, func(success bool) bool {
			passed = success
			return false
		})
		if !passed {
			if alive.Err() == nil {
				fail("its startup probe", startup.TerminationGracePeriodSeconds)
			}
			return
		}
	}
	one.change(func() {
		one.started = true
		one.ready = one.spec.ReadinessProbe == nil
	})
	one.begunOnce.Do(func() { close(one.begun) })
	var probes sync.WaitGroup
	if readiness := one.spec.ReadinessProbe; readiness != nil {
		probes.Go(func() {
			one.probeUntil(ctx, process, readiness, false, func(success bool) bool {
				one.change(func() { one.ready = success && one.process == process })
				return true
			})
		})
	}
	if liveness := one.spec.LivenessProbe; liveness != nil {
		probes.Go(func() {
			one.probeUntil(alive, process, liveness, true, func(success bool) bool {
				if !success && alive.Err() == nil {
					fail("its liveness probe", liveness.TerminationGracePeriodSeconds)
				}
				return success
			})
		})
	}
	probes.Wait()
}

// probeUntil probes until the context ends or report, which is told each change
// of the result by the probe's thresholds, says that it is enough. initially is
// the result before the first probe; a startup probe's failure is told although it
// is no change.
func (one *supervised) probeUntil(ctx context.Context, process *container.Process, spec *corev1.Probe, initially bool, report func(bool) bool) {
	startup := spec == one.spec.StartupProbe
	if !pause(ctx, time.Duration(spec.InitialDelaySeconds)*time.Second) {
		return
	}
	result, streak, previous := initially, int32(0), initially
	for {
		success := one.probe(ctx, process, spec)
		if ctx.Err() != nil {
			return
		}
		if success != previous {
			streak, previous = 0, success
		}
		streak++
		threshold := max(spec.SuccessThreshold, 1)
		if !success {
			threshold = max(spec.FailureThreshold, 1)
		}
		if streak >= threshold && (success != result || (startup && !success)) {
			result = success
			if !report(result) {
				return
			}
		}
		if !pause(ctx, time.Duration(max(spec.PeriodSeconds, 1))*time.Second) {
			return
		}
	}
}

// probe asks once.
func (one *supervised) probe(ctx context.Context, process *container.Process, spec *corev1.Probe) bool {
	timeout := time.Duration(max(spec.TimeoutSeconds, 1)) * time.Second
	address := one.worker.address()
	var result probe.Result
	var said string
	var err error
	switch {
	case spec.HTTPGet != nil:
		var request *http.Request
		if request, err = httpprobe.NewRequestForHTTPGetAction(spec.HTTPGet, one.spec, address, "probe"); err == nil {
			result, said, err = httpprobe.New(false).Probe(request, timeout)
		}
	case spec.TCPSocket != nil:
		var port int
		if port, err = one.port(spec.TCPSocket.Port); err == nil {
			host := spec.TCPSocket.Host
			if host == "" {
				host = address
			}
			result, said, err = tcpprobe.New().Probe(host, port, timeout)
		}
	case spec.GRPC != nil:
		service := ""
		if spec.GRPC.Service != nil {
			service = *spec.GRPC.Service
		}
		result, said, err = grpcprobe.New().Probe(address, service, int(spec.GRPC.Port), timeout)
	case spec.Exec != nil:
		limited, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		var output bytes.Buffer
		if err := process.Exec(limited, spec.Exec.Command, nil, &output, &output); err != nil {
			slog.Debug("a probe failed", "container", one.name(), "error", err, "said", output.String())
			return false
		}
		return true
	}
	if err != nil || result == probe.Failure {
		slog.Debug("a probe failed", "container", one.name(), "error", err, "said", said)
	}
	return err == nil && (result == probe.Success || result == probe.Warning)
}

// runHook runs a hook of the container's life to its end.
func (one *supervised) runHook(ctx context.Context, process *container.Process, hook *corev1.LifecycleHandler) error {
	switch {
	case hook.Exec != nil:
		return process.Exec(ctx, hook.Exec.Command, nil, nil, nil)
	case hook.HTTPGet != nil:
		request, err := httpprobe.NewRequestForHTTPGetAction(hook.HTTPGet, one.spec, one.worker.address(), "lifecycle")
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request.WithContext(ctx))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("%s", response.Status)
		}
	case hook.Sleep != nil:
		select {
		case <-process.Done():
		case <-one.worker.kill:
		case <-ctx.Done():
		case <-time.After(time.Duration(hook.Sleep.Seconds) * time.Second):
		}
	}
	return nil
}

// port is the number of a container's port.
func (one *supervised) port(port intstr.IntOrString) (int, error) {
	if port.Type == intstr.Int {
		return port.IntValue(), nil
	}
	for _, known := range one.spec.Ports {
		if known.Name == port.StrVal {
			return int(known.ContainerPort), nil
		}
	}
	return 0, fmt.Errorf("there is no port %q", port.StrVal)
}

func (one *supervised) name() string {
	pod := one.worker.seen()
	return strings.Join([]string{pod.Namespace, pod.Name, one.spec.Name}, "/")
}

// address is where probes find the pod.
func (worker *Worker) address() string {
	worker.mutex.Lock()
	defer worker.mutex.Unlock()
	return worker.sandbox.V4
}

// pause says whether the context is still valid after a while.
func pause(ctx context.Context, length time.Duration) bool {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
