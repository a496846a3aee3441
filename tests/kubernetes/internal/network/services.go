package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// settle is how long changes are collected before the rules are written: a
// rolling update changes many at once.
const settle = 10 * time.Millisecond

// Proxy keeps the rules of nftables as Services and EndpointSlices are.
type Proxy struct {
	services  corelisters.ServiceLister
	slices    discoverylisters.EndpointSliceLister
	changed   chan struct{}
	hasSynced []cache.InformerSynced
	// applied is what the rules are now.
	applied string
}

// NewProxy makes the proxy. Nothing happens before Run.
func NewProxy(factory informers.SharedInformerFactory) (*Proxy, error) {
	services, endpoints := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
	proxy := &Proxy{services: services.Lister(), slices: endpoints.Lister(), changed: make(chan struct{}, 1)}
	note := func(any) {
		select {
		case proxy.changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: note, UpdateFunc: func(_, now any) { note(now) }, DeleteFunc: note}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), endpoints.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, err
		}
		proxy.hasSynced = append(proxy.hasSynced, informer.HasSynced)
	}
	return proxy, nil
}

// Run writes rules until the context ends.
func (proxy *Proxy) Run(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), proxy.hasSynced...) {
		return
	}
	for {
		if err := proxy.apply(ctx); err != nil {
			slog.Error("the rules of Services are not written", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-proxy.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
	}
}

func (proxy *Proxy) apply(ctx context.Context) error {
	services, err := proxy.services.List(labels.Everything())
	if err != nil {
		return err
	}
	endpoints, err := proxy.slices.List(labels.Everything())
	if err != nil {
		return err
	}
	rules := Rules(services, endpoints)
	if rules == proxy.applied {
		return nil
	}
	command := exec.CommandContext(ctx, "nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	var complaint bytes.Buffer
	command.Stderr = &complaint
	if err := command.Run(); err != nil {
		return errors.Join(err, errors.New(complaint.String()))
	}
	proxy.applied = rules
	return nil
}

// Rules are the rules of nftables that make ClusterIPs of these Services: each
// connection goes to one of the ready endpoints by chance, or is refused if
// there is none. Node ports, load balancers and session affinity are left out.
func Rules(services []*corev1.Service, endpoints []*discoveryv1.EndpointSlice) string {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, slice := range endpoints {
		key := slice.Namespace + "/" + slice.Labels[discoveryv1.LabelServiceName]
		byService[key] = append(byService[key], slice)
	}
	var chains strings.Builder
	dispatch := map[string][]string{}
	hairpin := map[string][]string{}
	count := 0
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	for _, service := range services {
		for _, address := range service.Spec.ClusterIPs {
			ip, err := netip.ParseAddr(address)
			if err != nil {
				continue // headless
			}
			family := family(ip)
			for _, port := range service.Spec.Ports {
				targets := Targets(byService[service.Namespace+"/"+service.Name], port, ip.Is6())
				if len(targets) == 0 || port.Protocol == corev1.ProtocolSCTP {
					continue
				}
				protocol := strings.ToLower(string(port.Protocol))
				chain := "service" + strconv.Itoa(count)
				count++
				elements := make([]string, len(targets))
				for number, target := range targets {
					elements[number] = fmt.Sprintf("%d : %s . %d", number, target.Addr(), target.Port())
					hairpin[family] = append(hairpin[family], fmt.Sprintf("%s . %s", target.Addr(), target.Addr()))
				}
				fmt.Fprintf(&chains, "  chain %s {\n    meta l4proto %s dnat %s to numgen random mod %d map { %s }\n  }\n",
					chain, protocol, family, len(targets), strings.Join(elements, ", "))
				dispatch[family] = append(dispatch[family], fmt.Sprintf("%s . %s . %d : goto %s", ip, protocol, port.Port, chain))
			}
		}
	}
	var rules strings.Builder
	rules.WriteString("table inet services\ndelete table inet services\ntable inet services {\n")
	rules.WriteString(chains.String())
	for _, family := range []string{"ip", "ip6"} {
		kind := map[string]string{"ip": "ipv4_addr", "ip6": "ipv6_addr"}[family]
		fmt.Fprintf(&rules, "  map ports-%s {\n    type %s . inet_proto . inet_service : verdict\n%s  }\n", family, kind, elements(dispatch[family]))
		slices.Sort(hairpin[family])
		fmt.Fprintf(&rules, "  set hairpin-%s {\n    type %s . %s\n%s  }\n", family, kind, kind, elements(slices.Compact(hairpin[family])))
	}
	rules.WriteString(`  chain dispatch {
    ip daddr . meta l4proto . th dport vmap @ports-ip
    ip6 daddr . meta l4proto . th dport vmap @ports-ip6
  }
  chain prerouting {
    type nat hook prerouting priority dstnat
    jump dispatch
  }
  chain output {
    type nat hook output priority -100
    jump dispatch
  }
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr . ip daddr @hairpin-ip masquerade
    ip6 saddr . ip6 daddr @hairpin-ip6 masquerade
  }
  chain unserved {
    ip daddr ` + ServicesV4 + ` reject
    ip6 daddr ` + ServicesV6 + ` reject
  }
  chain forward {
    type filter hook forward priority filter
    jump unserved
  }
  chain local {
    type filter hook output priority filter
    jump unserved
  }
}
`)
	return rules.String()
}

// Targets are where connections to a Service's port go: its ready endpoints of
// the family, or those that still serve while they end if none is ready.
func Targets(endpoints []*discoveryv1.EndpointSlice, port corev1.ServicePort, v6 bool) []netip.AddrPort {
	var ready, ending []netip.AddrPort
	for _, slice := range endpoints {
		if (slice.AddressType == discoveryv1.AddressTypeIPv6) != v6 {
			continue
		}
		number := portNumber(slice, port)
		if number == 0 {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if len(endpoint.Addresses) == 0 {
				continue
			}
			ip, err := netip.ParseAddr(endpoint.Addresses[0])
			if err != nil {
				continue
			}
			conditions, target := endpoint.Conditions, netip.AddrPortFrom(ip, number)
			switch {
			case conditions.Ready == nil || *conditions.Ready:
				ready = append(ready, target)
			case conditions.Serving != nil && *conditions.Serving:
				ending = append(ending, target)
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	return slices.Compact(ready)
}

// portNumber is the number that a slice gives to a Service's port, 0 if none.
func portNumber(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) uint16 {
	for _, one := range slice.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if one.Name != nil {
			name = *one.Name
		}
		if one.Protocol != nil {
			protocol = *one.Protocol
		}
		if name == port.Name && protocol == port.Protocol && one.Port != nil {
			return uint16(*one.Port)
		}
	}
	return 0
}

func family(ip netip.Addr) string {
	if ip.Is4() {
		return "ip"
	}
	return "ip6"
}

func elements(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return "    elements = { " + strings.Join(lines, ",\n      ") + " }\n"
}
