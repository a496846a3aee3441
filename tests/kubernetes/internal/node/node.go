// Package node is the nodes of a cluster, all served by one process: their
// objects at the API server, their heartbeats, and the pods that the scheduler
// binds to them.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"heddle.dev/tests/kubernetes/internal/kubelet"
	"heddle.dev/tests/kubernetes/internal/network"
)

// heartbeat is how often a node's lease is renewed, as the kubelet does. leaseSeconds is its duration.
const (
	heartbeat    = 10 * time.Second
	leaseSeconds = 40
)

// Name is that of the node with this number.
func Name(number int) string {
	return fmt.Sprintf("node-%d", number)
}

// Zone is the zone of the node with this number; there are three.
func Zone(number int) string {
	return fmt.Sprintf("zone-%c", 'a'+number%3)
}

// Announce makes the node's object and keeps it alive until the context ends.
func Announce(ctx context.Context, client kubernetes.Interface, number int) {
	for {
		wait := heartbeat
		if err := announce(ctx, client, number); err != nil {
			slog.Warn("a node is not announced", "node", Name(number), "error", err)
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func announce(ctx context.Context, client kubernetes.Interface, number int) error {
	nodes := client.CoreV1().Nodes()
	known, err := nodes.Get(ctx, Name(number), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		known, err = nodes.Create(ctx, object(number), metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	if !isReady(known) {
		known.Status = status(number)
		if _, err := nodes.UpdateStatus(ctx, known, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return renew(ctx, client, known)
}

func isReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func object(number int) *corev1.Node {
	name := Name(number)
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelHostname:       name,
		corev1.LabelOSStable:       "linux",
		corev1.LabelArchStable:     runtime.GOARCH,
		corev1.LabelTopologyZone:   Zone(number),
		corev1.LabelTopologyRegion: "region",
	}}}
}

// status promises more than the machine has: limits are not enforced, and no test is about them.
func status(number int) corev1.NodeStatus {
	v4, v6 := network.NodeAddresses(number)
	resources := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("64"),
		corev1.ResourceMemory:           resource.MustParse("256Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
		corev1.ResourcePods:             resource.MustParse("500"),
	}
	now := metav1.Now()
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, Reason: "TestNode", LastHeartbeatTime: now, LastTransitionTime: now}
	}
	return corev1.NodeStatus{
		Capacity:    resources,
		Allocatable: resources,
		Conditions: []corev1.NodeCondition{
			condition(corev1.NodeReady, corev1.ConditionTrue),
			condition(corev1.NodeMemoryPressure, corev1.ConditionFalse),
			condition(corev1.NodeDiskPressure, corev1.ConditionFalse),
			condition(corev1.NodePIDPressure, corev1.ConditionFalse),
		},
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: v4},
			{Type: corev1.NodeInternalIP, Address: v6},
			{Type: corev1.NodeHostName, Address: Name(number)},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: kubelet.Port}},
		NodeInfo: corev1.NodeSystemInfo{
			OperatingSystem: "linux", Architecture: runtime.GOARCH, KubeletVersion: "v1.36.3",
			ContainerRuntimeVersion: "processes://1", OSImage: "this machine",
		},
	}
}

func renew(ctx context.Context, client kubernetes.Interface, node *corev1.Node) error {
	leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := metav1.NowMicro()
	lease, err := leases.Get(ctx, node.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		duration := int32(leaseSeconds)
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: node.Name},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &node.Name, LeaseDurationSeconds: &duration, RenewTime: &now},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}
