package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func endpoint(address string, ready, serving bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving},
	}
}

func slice(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	name, port, protocol := "http", int32(8080), corev1.ProtocolTCP
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "cart"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   endpoints,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
}

var port = corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}

func TestConnectionsGoToReadyEndpointsAndElseToThoseThatStillServe(t *testing.T) {
	ready, ending, neither := endpoint("10.244.0.2", true, true), endpoint("10.244.0.3", false, true), endpoint("10.244.0.4", false, false)
	for _, one := range []struct {
		slice *discoveryv1.EndpointSlice
		want  []string
	}{
		{slice(ready, ending, neither), []string{"10.244.0.2:8080"}},
		{slice(ending, neither), []string{"10.244.0.3:8080"}},
		{slice(neither), nil},
	} {
		var want []netip.AddrPort
		for _, address := range one.want {
			want = append(want, netip.MustParseAddrPort(address))
		}
		if got := Targets([]*discoveryv1.EndpointSlice{one.slice}, port, false); !slices.Equal(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
		if got := Targets([]*discoveryv1.EndpointSlice{one.slice}, port, true); got != nil {
			t.Errorf("%v are not of IPv6", got)
		}
	}
}

func TestRulesAreTheSameInWhateverOrderServicesCome(t *testing.T) {
	cart := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.20"}, Ports: []corev1.ServicePort{port}},
	}
	headless := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headless"},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{corev1.ClusterIPNone}, Ports: []corev1.ServicePort{port}},
	}
	endpoints := []*discoveryv1.EndpointSlice{slice(endpoint("10.244.0.2", true, true), endpoint("10.244.0.3", true, true))}
	rules := Rules([]*corev1.Service{cart, headless}, endpoints)
	if rules != Rules([]*corev1.Service{headless, cart}, endpoints) {
		t.Error("they differ")
	}
	for _, part := range []string{
		"10.96.0.20 . tcp . 80 : goto service0",
		"numgen random mod 2 map { 0 : 10.244.0.2 . 8080, 1 : 10.244.0.3 . 8080 }",
		"10.244.0.2 . 10.244.0.2",
	} {
		if !strings.Contains(rules, part) {
			t.Errorf("%q is not in %s", part, rules)
		}
	}
}
