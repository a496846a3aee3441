// Package pod runs pods as the kubelet does: init containers in order, native
// sidecars around them and the others, probes and hooks, restarts, an orderly
// end. What a pod does is told to the API server after each change; while that
// cannot be reached, pods go on.
package pod

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"

	"heddle.dev/tests/kubernetes/internal/images"
	"heddle.dev/tests/kubernetes/internal/network"
	"heddle.dev/tests/kubernetes/internal/volumes"
)

// retry is how long to wait before trying again what may come right by itself.
const retry = 500 * time.Millisecond

// Host is the node that pods run on.
type Host struct {
	Name string
	// V4 and V6 are the node's addresses.
	V4, V6 string
	// Directory holds the pods' files.
	Directory string
	Client    kubernetes.Interface
	Services  corelisters.ServiceLister
	Sources   volumes.Sources
	Images    images.Catalogue
	Pool      *network.Pool
}

// Worker runs one pod from its binding to its deletion.
type Worker struct {
	host      *Host
	directory string
	volumes   *volumes.Volumes

	// stop is closed when the pod is to end within its grace period, kill when at once.
	stop, kill         chan struct{}
	stopOnce, killOnce sync.Once
	// done is closed when nothing of the pod is left.
	done chan struct{}
	// changed asks for the status to be published, sourced for the volumes to be updated.
	changed, sourced chan struct{}

	inits, apps []*supervised

	mutex sync.Mutex
	// pod is the newest version that was seen. It is replaced, never changed.
	pod     *corev1.Pod
	sandbox *network.Sandbox
	started time.Time
	// deadline is when a pod that ends is killed.
	deadline time.Time
	// waiting is why no container runs yet.
	waiting string
	// initialized is whether all init containers did their part, ended whether all containers did.
	initialized, ended bool
	since              map[corev1.PodConditionType]corev1.PodCondition
	// published is what the API server was last told.
	published string
}

// Start begins to run a pod.
func Start(host *Host, pod *corev1.Pod) *Worker {
	directory := filepath.Join(host.Directory, string(pod.UID))
	worker := &Worker{
		host:      host,
		directory: directory,
		volumes:   volumes.New(filepath.Join(directory, "volumes"), host.Sources),
		stop:      make(chan struct{}),
		kill:      make(chan struct{}),
		done:      make(chan struct{}),
		changed:   make(chan struct{}, 1),
		sourced:   make(chan struct{}, 1),
		pod:       pod,
		started:   time.Now(),
		since:     map[corev1.PodConditionType]corev1.PodCondition{},
	}
	for index := range pod.Spec.InitContainers {
		spec := &pod.Spec.InitContainers[index]
		policy, sidecar := pod.Spec.RestartPolicy, isSidecar(spec)
		switch {
		case sidecar:
			policy = corev1.RestartPolicyAlways
		case policy == corev1.RestartPolicyAlways:
			policy = corev1.RestartPolicyOnFailure
		}
		worker.inits = append(worker.inits, newSupervised(worker, spec, policy, sidecar))
	}
	for index := range pod.Spec.Containers {
		worker.apps = append(worker.apps, newSupervised(worker, &pod.Spec.Containers[index], pod.Spec.RestartPolicy, false))
	}
	go worker.run()
	worker.Update(pod)
	return worker
}

func isSidecar(spec *corev1.Container) bool {
	return spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Update tells the newest version of the pod.
func (worker *Worker) Update(pod *corev1.Pod) {
	worker.mutex.Lock()
	worker.pod = pod
	ending := pod.DeletionTimestamp != nil
	if ending {
		deadline := pod.DeletionTimestamp.Time
		if worker.deadline.IsZero() {
			// The API server's clock counts in whole seconds, and may be seen late.
			deadline = time.Now().Add(time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second)
		}
		if worker.deadline.IsZero() || deadline.Before(worker.deadline) {
			worker.deadline = deadline
		}
	}
	if worker.contradicted() {
		worker.published = ""
		signal(worker.changed)
	}
	worker.mutex.Unlock()
	if ending {
		worker.stopOnce.Do(func() { close(worker.stop) })
	}
	// Labels and annotations may be files of the pod.
	worker.SourcesChanged()
}

// Gone tells that the API server has the pod no more.
func (worker *Worker) Gone() {
	worker.stopOnce.Do(func() { close(worker.stop) })
	worker.killOnce.Do(func() { close(worker.kill) })
}

// SourcesChanged tells that a config map or a secret of the pod's namespace changed.
func (worker *Worker) SourcesChanged() {
	signal(worker.sourced)
}

// Done is closed when nothing of the pod is left.
func (worker *Worker) Done() <-chan struct{} {
	return worker.done
}

// Namespace is the pod's.
func (worker *Worker) Namespace() string {
	return worker.seen().Namespace
}

func (worker *Worker) seen() *corev1.Pod {
	worker.mutex.Lock()
	defer worker.mutex.Unlock()
	return worker.pod
}

func (worker *Worker) run() {
	defer close(worker.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	published := make(chan struct{})
	go func() {
		defer close(published)
		worker.publish(ctx)
	}()
	if worker.prepare(ctx) {
		go worker.keepVolumes(ctx)
		worker.runContainers()
	}
	worker.tearDown()
	select {
	case <-worker.stop:
	case <-worker.kill:
	}
	worker.delete()
	cancel()
	<-published
	worker.clear()
}

// prepare makes the pod's network and volumes, and says whether it could before the pod was ended.
func (worker *Worker) prepare(ctx context.Context) bool {
	for {
		err := worker.tryPrepare(ctx)
		if err == nil {
			worker.note("")
			return true
		}
		worker.note(err.Error())
		select {
		case <-worker.stop:
			return false
		case <-worker.sourced:
		case <-time.After(retry):
		}
	}
}

func (worker *Worker) tryPrepare(ctx context.Context) error {
	pod := worker.seen()
	worker.mutex.Lock()
	sandbox := worker.sandbox
	worker.mutex.Unlock()
	if sandbox == nil {
		var err error
		if pod.Spec.HostNetwork {
			sandbox = network.Shared(worker.host.V4, worker.host.V6)
		} else if sandbox, err = network.NewSandbox(worker.host.Pool); err != nil {
			return err
		}
		worker.mutex.Lock()
		worker.sandbox = sandbox
		worker.mutex.Unlock()
	}
	if err := worker.volumes.Update(ctx, pod); err != nil {
		return err
	}
	return worker.writeNames(pod, sandbox)
}

// keepVolumes updates the files of the pod as their sources change.
func (worker *Worker) keepVolumes(ctx context.Context) {
	// Tokens are renewed in time even if nothing else changes.
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-worker.sourced:
		case <-tick.C:
		}
		pod := worker.seen()
		if err := worker.volumes.Update(ctx, pod); err != nil && ctx.Err() == nil {
			slog.Warn("volumes stay as they were", "pod", pod.Namespace+"/"+pod.Name, "error", err)
		}
	}
}

// runContainers runs all containers until they ended by themselves or the pod is ended.
func (worker *Worker) runContainers() {
	if worker.runInits() {
		worker.mutex.Lock()
		worker.initialized = true
		worker.mutex.Unlock()
		worker.note("")
		// In their order, each when the hook of the one before has returned, as the kubelet does it.
		for _, app := range worker.apps {
			if worker.stopped() {
				break
			}
			go app.supervise()
			select {
			case <-app.hooked:
			case <-app.done:
			case <-worker.stop:
			}
		}
		for _, app := range worker.apps {
			select {
			case <-app.done:
			case <-worker.stop:
			}
		}
	}
	worker.end()
}

// stopped says whether the pod is to end.
func (worker *Worker) stopped() bool {
	select {
	case <-worker.stop:
		return true
	default:
		return false
	}
}

// runInits says whether the other containers may start.
func (worker *Worker) runInits() bool {
	for _, init := range worker.inits {
		go init.supervise()
		if init.sidecar {
			select {
			case <-init.begun:
			case <-worker.stop:
				return false
			}
			continue
		}
		select {
		case <-init.done:
			if !init.succeeded() {
				return false
			}
		case <-worker.stop:
			return false
		}
	}
	return true
}

// end stops what runs: sidecars after the others, the last to start first.
func (worker *Worker) end() {
	deadline := worker.endsAt()
	var ordinary, sidecars []*supervised
	for _, one := range append(append([]*supervised{}, worker.inits...), worker.apps...) {
		if one.sidecar {
			sidecars = append(sidecars, one)
		} else {
			ordinary = append(ordinary, one)
		}
	}
	for _, one := range ordinary {
		one.end(deadline)
	}
	for _, one := range ordinary {
		one.wait()
	}
	for index := len(sidecars) - 1; index >= 0; index-- {
		// A sidecar has a moment even if the others used up all the time.
		if moment := time.Now().Add(2 * time.Second); deadline.Before(moment) {
			deadline = moment
		}
		sidecars[index].end(deadline)
		sidecars[index].wait()
	}
	worker.mutex.Lock()
	worker.ended = true
	worker.mutex.Unlock()
	worker.note("")
}

// endsAt is until when containers have time to end.
func (worker *Worker) endsAt() time.Time {
	worker.mutex.Lock()
	defer worker.mutex.Unlock()
	if !worker.deadline.IsZero() {
		return worker.deadline
	}
	return time.Now().Add(gracePeriod(worker.pod))
}

func gracePeriod(pod *corev1.Pod) time.Duration {
	if pod.Spec.TerminationGracePeriodSeconds == nil {
		return 30 * time.Second
	}
	return time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
}

// find finds a container by its name.
func (worker *Worker) find(name string) *supervised {
	for _, one := range append(append([]*supervised{}, worker.apps...), worker.inits...) {
		if one.spec.Name == name || name == "" {
			return one
		}
	}
	return nil
}

// note says why nothing runs yet, if so, and has the status published.
func (worker *Worker) note(waiting string) {
	worker.mutex.Lock()
	worker.waiting = waiting
	worker.mutex.Unlock()
	signal(worker.changed)
}

func signal(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}
