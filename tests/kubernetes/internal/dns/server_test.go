package dns

import (
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

func server(t *testing.T) *Server {
	t.Helper()
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	ports := []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
	host := "member-0"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: meta("members-1"),
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.2"}, Hostname: &host}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "members"}
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	for _, service := range []*corev1.Service{
		{ObjectMeta: meta("cart"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}, Ports: ports}},
		{ObjectMeta: meta("members"), Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: ports}},
		{ObjectMeta: meta("elsewhere"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}},
		{ObjectMeta: meta("alias"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "cart.shop.svc.cluster.local"}},
		{ObjectMeta: meta("loop"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "loop.shop.svc.cluster.local"}},
	} {
		if err := factory.Core().V1().Services().Informer().GetStore().Add(service); err != nil {
			t.Fatal(err)
		}
	}
	if err := factory.Discovery().V1().EndpointSlices().Informer().GetStore().Add(slice); err != nil {
		t.Fatal(err)
	}
	return New(factory)
}

func TestAliasesAreFollowedWithinTheCluster(t *testing.T) {
	server := server(t)
	records, _ := server.Records("alias.shop.svc.cluster.local.", dns.TypeA)
	if len(records) != 2 || records[1].(*dns.A).A.String() != "10.96.0.20" {
		t.Errorf("%v", records)
	}
	if records, _ := server.Records("loop.shop.svc.cluster.local.", dns.TypeA); len(records) != maxAliases+1 {
		t.Errorf("%v", records)
	}
}

func TestNamesOfServicesAndPods(t *testing.T) {
	server := server(t)
	for _, one := range []struct {
		name   string
		kind   uint16
		exists bool
		want   string
	}{
		{"cart.shop.svc.cluster.local.", dns.TypeA, true, "10.96.0.20"},
		{"CART.shop.svc.cluster.local.", dns.TypeA, true, "10.96.0.20"},
		{"cart.shop.svc.cluster.local.", dns.TypeAAAA, true, ""},
		{"members.shop.svc.cluster.local.", dns.TypeA, true, "10.244.0.2"},
		{"member-0.members.shop.svc.cluster.local.", dns.TypeA, true, "10.244.0.2"},
		{"member-1.members.shop.svc.cluster.local.", dns.TypeA, false, ""},
		{"elsewhere.shop.svc.cluster.local.", dns.TypeA, true, "example.com."},
		{"_http._tcp.cart.shop.svc.cluster.local.", dns.TypeSRV, true, "0 100 80 cart.shop.svc.cluster.local."},
		{"_grpc._tcp.cart.shop.svc.cluster.local.", dns.TypeSRV, false, ""},
		{"10-244-0-2.shop.pod.cluster.local.", dns.TypeA, true, "10.244.0.2"},
		{"nobody.shop.svc.cluster.local.", dns.TypeA, false, ""},
		{"shop.svc.cluster.local.", dns.TypeA, false, ""},
		{"example.com.", dns.TypeA, false, ""},
	} {
		records, exists := server.Records(one.name, one.kind)
		got := ""
		if len(records) > 0 {
			got = records[0].String()[len(records[0].Header().String()):]
		}
		if exists != one.exists || got != one.want {
			t.Errorf("%s: %v %q, not %v %q", one.name, exists, got, one.exists, one.want)
		}
	}
}
