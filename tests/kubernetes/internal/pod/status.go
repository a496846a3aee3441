package pod

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// publish tells the API server the pod's status after each change, until the context ends.
func (worker *Worker) publish(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-worker.changed:
		}
		worker.mutex.Lock()
		pod, published := worker.pod, worker.published
		worker.mutex.Unlock()
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": pod.UID},
			"status":   worker.status(),
		})
		if err != nil {
			slog.Error("a pod's status cannot be written", "error", err)
			continue
		}
		if string(patch) == published {
			continue
		}
		_, err = worker.host.Client.CoreV1().Pods(pod.Namespace).Patch(
			ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		switch {
		case err == nil:
			worker.mutex.Lock()
			worker.published = string(patch)
			worker.mutex.Unlock()
		case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
			// The pod is gone, or is another by the same name.
		case ctx.Err() == nil:
			slog.Warn("a pod's status is not published yet", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			go func() {
				if pause(ctx, retry) {
					signal(worker.changed)
				}
			}()
		}
	}
}

// contradicted is whether someone else, such as a controller that took the node for
// dead, says otherwise about the pod's readiness. The lock is held.
func (worker *Worker) contradicted() bool {
	for _, condition := range worker.pod.Status.Conditions {
		if known, found := worker.since[condition.Type]; found && known.Status != condition.Status {
			return true
		}
	}
	return false
}

// status is the pod's, of which the API server keeps what others wrote.
func (worker *Worker) status() corev1.PodStatus {
	worker.mutex.Lock()
	defer worker.mutex.Unlock()
	started := metav1.NewTime(worker.started)
	status := corev1.PodStatus{
		Phase:     worker.phase(),
		HostIP:    worker.host.V4,
		HostIPs:   []corev1.HostIP{{IP: worker.host.V4}, {IP: worker.host.V6}},
		StartTime: &started,
	}
	if worker.waiting != "" {
		status.Message = worker.waiting
	}
	if sandbox := worker.sandbox; sandbox != nil {
		status.PodIP = sandbox.V4
		status.PodIPs = []corev1.PodIP{{IP: sandbox.V4}, {IP: sandbox.V6}}
	}
	allReady := worker.initialized
	for _, one := range worker.inits {
		status.InitContainerStatuses = append(status.InitContainerStatuses, one.status())
		allReady = allReady && (!one.sidecar || one.ready)
	}
	for _, one := range worker.apps {
		status.ContainerStatuses = append(status.ContainerStatuses, one.status())
		allReady = allReady && one.ready
	}
	reason := "ContainersNotReady"
	if worker.ended {
		reason = "PodCompleted"
	}
	ready := allReady
	for _, gate := range worker.pod.Spec.ReadinessGates {
		open := false
		for _, condition := range worker.pod.Status.Conditions {
			open = open || (condition.Type == gate.ConditionType && condition.Status == corev1.ConditionTrue)
		}
		ready = ready && open
	}
	status.Conditions = []corev1.PodCondition{
		worker.condition(corev1.PodReadyToStartContainers, worker.sandbox != nil && !worker.ended, ""),
		worker.condition(corev1.PodInitialized, worker.initialized, "ContainersNotInitialized"),
		worker.condition(corev1.ContainersReady, allReady, reason),
		worker.condition(corev1.PodReady, ready, reason),
	}
	return status
}

func (worker *Worker) phase() corev1.PodPhase {
	succeeded := true
	for _, app := range worker.apps {
		state := app.settled()
		succeeded = succeeded && state.Terminated != nil && state.Terminated.ExitCode == 0
	}
	switch {
	case worker.ended && succeeded:
		return corev1.PodSucceeded
	case worker.ended:
		return corev1.PodFailed
	case !worker.initialized:
		return corev1.PodPending
	}
	for _, app := range worker.apps {
		if app.state.Waiting != nil && app.last.Terminated == nil || app.state == (corev1.ContainerState{}) {
			return corev1.PodPending
		}
	}
	return corev1.PodRunning
}

// condition keeps the time at which a condition last changed.
func (worker *Worker) condition(kind corev1.PodConditionType, holds bool, reason string) corev1.PodCondition {
	condition := corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, ObservedGeneration: worker.pod.Generation}
	if !holds {
		condition.Status, condition.Reason = corev1.ConditionFalse, reason
	}
	known, found := worker.since[kind]
	condition.LastTransitionTime = known.LastTransitionTime
	if !found || known.Status != condition.Status {
		condition.LastTransitionTime = metav1.Now()
	}
	worker.since[kind] = condition
	return condition
}

// status is the container's. The worker's lock is held.
func (one *supervised) status() corev1.ContainerStatus {
	started := one.started
	status := corev1.ContainerStatus{
		Name: one.spec.Name, Image: one.spec.Image, ImageID: one.spec.Image,
		State: one.settled(), LastTerminationState: one.last,
		Ready: one.ready, RestartCount: one.restarts, Started: &started,
	}
	if one.state.Terminated != nil && one.state.Terminated.ExitCode == 0 && !one.sidecar {
		// An init container that did its part counts as ready.
		status.Ready = status.Ready || one.isInit()
	}
	if status.State == (corev1.ContainerState{}) {
		reason := "PodInitializing"
		if one.worker.sandbox == nil || one.worker.waiting != "" {
			reason = "ContainerCreating"
		}
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: one.worker.waiting}
	}
	return status
}

// settled is the container's state, which for one that will not start again is how it ended.
func (one *supervised) settled() corev1.ContainerState {
	if one.worker.ended && one.state.Waiting != nil && one.last.Terminated != nil {
		return one.last
	}
	return one.state
}

func (one *supervised) isInit() bool {
	for _, init := range one.worker.inits {
		if init == one {
			return true
		}
	}
	return false
}

// delete has the API server forget the pod, which ended as it wished.
func (worker *Worker) delete() {
	pod := worker.seen()
	zero := int64(0)
	options := metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	for {
		select {
		case <-worker.kill:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := worker.host.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, options)
		cancel()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		select {
		case <-worker.kill:
		case <-time.After(retry):
		}
	}
}

// tearDown ends the pod's network: its addresses are nobody's from now on.
func (worker *Worker) tearDown() {
	worker.mutex.Lock()
	defer worker.mutex.Unlock()
	worker.ended = true
	if worker.sandbox != nil {
		worker.sandbox.Close()
	}
	signal(worker.changed)
}

// clear removes the pod's files.
func (worker *Worker) clear() {
	if err := os.RemoveAll(worker.directory); err != nil {
		slog.Warn("a pod's files stay", "error", err)
	}
}
