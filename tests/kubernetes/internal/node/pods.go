package node

import (
	"context"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"heddle.dev/tests/kubernetes/internal/images"
	"heddle.dev/tests/kubernetes/internal/network"
	"heddle.dev/tests/kubernetes/internal/pod"
)

// Pods runs the pods of all nodes.
type Pods struct {
	hosts   map[string]*pod.Host
	objects corelisters.PodLister

	mutex   sync.Mutex
	workers map[types.UID]*pod.Worker
}

// NewPods makes what runs pods on this many nodes. It begins when the informers do.
func NewPods(client kubernetes.Interface, factory informers.SharedInformerFactory, catalogue images.Catalogue, directory string, nodes int) (*Pods, error) {
	core := factory.Core().V1()
	pods := &Pods{hosts: map[string]*pod.Host{}, objects: core.Pods().Lister(), workers: map[types.UID]*pod.Worker{}}
	sources := &sources{client: client, configMaps: core.ConfigMaps().Lister(), secrets: core.Secrets().Lister()}
	pool := network.NewPool()
	for number := range nodes {
		v4, v6 := network.NodeAddresses(number)
		pods.hosts[Name(number)] = &pod.Host{
			Name: Name(number), V4: v4, V6: v6, Directory: directory, Client: client,
			Services: core.Services().Lister(), Sources: sources, Images: catalogue, Pool: pool,
		}
	}
	_, err := core.Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    pods.saw,
		UpdateFunc: func(_, now any) { pods.saw(now) },
		DeleteFunc: pods.lost,
	})
	if err != nil {
		return nil, err
	}
	sourced := cache.ResourceEventHandlerFuncs{
		AddFunc:    pods.sourced,
		UpdateFunc: func(_, now any) { pods.sourced(now) },
		DeleteFunc: pods.sourced,
	}
	for _, informer := range []cache.SharedIndexInformer{core.ConfigMaps().Informer(), core.Secrets().Informer()} {
		if _, err := informer.AddEventHandler(sourced); err != nil {
			return nil, err
		}
	}
	return pods, nil
}

// Find finds a pod on a node.
func (pods *Pods) Find(node, namespace, name string) *pod.Worker {
	object, err := pods.objects.Pods(namespace).Get(name)
	if err != nil || object.Spec.NodeName != node {
		return nil
	}
	pods.mutex.Lock()
	defer pods.mutex.Unlock()
	return pods.workers[object.UID]
}

func (pods *Pods) saw(seen any) {
	object, ok := seen.(*corev1.Pod)
	if !ok || pods.hosts[object.Spec.NodeName] == nil {
		return
	}
	pods.mutex.Lock()
	defer pods.mutex.Unlock()
	if worker, known := pods.workers[object.UID]; known {
		worker.Update(object)
		return
	}
	if object.Status.Phase == corev1.PodSucceeded || object.Status.Phase == corev1.PodFailed {
		return
	}
	worker := pod.Start(pods.hosts[object.Spec.NodeName], object)
	pods.workers[object.UID] = worker
	go func() {
		<-worker.Done()
		pods.mutex.Lock()
		defer pods.mutex.Unlock()
		delete(pods.workers, object.UID)
	}()
}

func (pods *Pods) lost(seen any) {
	if unknown, ok := seen.(cache.DeletedFinalStateUnknown); ok {
		seen = unknown.Obj
	}
	object, ok := seen.(*corev1.Pod)
	if !ok {
		return
	}
	pods.mutex.Lock()
	defer pods.mutex.Unlock()
	if worker := pods.workers[object.UID]; worker != nil {
		worker.Gone()
	}
}

func (pods *Pods) sourced(seen any) {
	if unknown, ok := seen.(cache.DeletedFinalStateUnknown); ok {
		seen = unknown.Obj
	}
	object, ok := seen.(metav1.Object)
	if !ok {
		return
	}
	pods.mutex.Lock()
	defer pods.mutex.Unlock()
	for _, worker := range pods.workers {
		if worker.Namespace() == object.GetNamespace() {
			worker.SourcesChanged()
		}
	}
}

// sources are what volumes and variables of pods are made of.
type sources struct {
	client     kubernetes.Interface
	configMaps corelisters.ConfigMapLister
	secrets    corelisters.SecretLister
}

func (sources *sources) ConfigMap(namespace, name string) (*corev1.ConfigMap, error) {
	return sources.configMaps.ConfigMaps(namespace).Get(name)
}

func (sources *sources) Secret(namespace, name string) (*corev1.Secret, error) {
	return sources.secrets.Secrets(namespace).Get(name)
}

func (sources *sources) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	accounts := sources.client.CoreV1().ServiceAccounts(pod.Namespace)
	answer, err := accounts.CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", time.Time{}, err
	}
	return answer.Status.Token, answer.Status.ExpirationTimestamp.Time, nil
}
