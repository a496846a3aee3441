// Package dns answers the names of Services and pods as the specification of
// DNS-based service discovery says, for all pods of the cluster. It knows no
// other names: a test reaches nothing outside.
package dns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
)

// ttl is in seconds. Short, as a test should see what changes.
const ttl = 1

// domain is the cluster's.
const domain = "cluster.local."

// maxAliases is how many aliases lead to each other at most.
const maxAliases = 8

// Server answers from what the API server last said.
type Server struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

// New makes a server.
func New(factory informers.SharedInformerFactory) *Server {
	return &Server{factory.Core().V1().Services().Lister(), factory.Discovery().V1().EndpointSlices().Lister()}
}

// Serve answers by UDP and TCP until that fails.
func (server *Server) Serve(address string) error {
	failed := make(chan error, 2)
	for _, network := range []string{"udp", "tcp"} {
		listener := &dns.Server{Addr: net.JoinHostPort(address, "53"), Net: network, Handler: dns.HandlerFunc(server.answer)}
		go func() { failed <- listener.ListenAndServe() }()
	}
	return <-failed
}

func (server *Server) answer(writer dns.ResponseWriter, request *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(request)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if len(request.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
	} else if records, exists := server.Records(request.Question[0].Name, request.Question[0].Qtype); exists {
		reply.Answer = records
	} else {
		reply.Rcode = dns.RcodeNameError
	}
	if _, udp := writer.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if options := request.IsEdns0(); options != nil {
			size = int(options.UDPSize())
		}
		reply.Truncate(size)
	}
	// Who asked and went away does not want to know.
	_ = writer.WriteMsg(reply)
}

// Records are those of a name and kind, and whether the name exists at all.
func (server *Server) Records(name string, kind uint16) ([]dns.RR, bool) {
	return server.records(name, kind, maxAliases)
}

// records are the same where so many aliases may be followed.
func (server *Server) records(name string, kind uint16, aliases int) ([]dns.RR, bool) {
	relative, inside := strings.CutSuffix(strings.ToLower(name), "."+domain)
	if !inside {
		return nil, false
	}
	parts := strings.Split(relative, ".")
	count := len(parts)
	if count < 3 {
		return nil, count == 1 && (parts[0] == "svc" || parts[0] == "pod")
	}
	before, namespace, zone := parts[:count-2], parts[count-2], parts[count-1]
	switch {
	case zone == "pod" && len(before) == 1:
		return podRecords(name, before[0], kind)
	case zone == "svc":
		service, err := server.services.Services(namespace).Get(before[len(before)-1])
		if err != nil {
			return nil, false
		}
		return server.serviceRecords(name, service, before[:len(before)-1], kind, aliases)
	}
	return nil, false
}

// serviceRecords are those of a name of a Service, of which host is what comes before the Service's name.
func (server *Server) serviceRecords(name string, service *corev1.Service, host []string, kind uint16, aliases int) ([]dns.RR, bool) {
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		target := &dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: dns.Fqdn(service.Spec.ExternalName)}
		records := []dns.RR{target}
		// Who asks is told where a name of the cluster leads in one answer, as by CoreDNS.
		if kind != dns.TypeCNAME && aliases > 0 {
			more, _ := server.records(target.Target, kind, aliases-1)
			records = append(records, more...)
		}
		return records, len(host) == 0
	}
	endpoints := server.endpoints(service)
	switch {
	case len(host) == 2 && strings.HasPrefix(host[0], "_") && strings.HasPrefix(host[1], "_"):
		return server.ports(name, service, endpoints, host[0][1:], host[1][1:], kind)
	case len(host) == 1:
		var addresses []string
		for _, endpoint := range endpoints {
			if endpoint.host == host[0] {
				addresses = append(addresses, endpoint.address)
			}
		}
		return addressRecords(name, addresses, kind), len(addresses) > 0
	case len(host) > 1:
		return nil, false
	case service.Spec.ClusterIP == corev1.ClusterIPNone:
		var addresses []string
		for _, endpoint := range endpoints {
			addresses = append(addresses, endpoint.address)
		}
		return addressRecords(name, addresses, kind), true
	}
	return addressRecords(name, service.Spec.ClusterIPs, kind), true
}

// endpoint is one of a Service, with its host name in the Service's domain.
type endpoint struct {
	host, address string
}

// endpoints are those that are ready, or all if the Service wants that.
func (server *Server) endpoints(service *corev1.Service) []endpoint {
	selector := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service.Name})
	endpointSlices, err := server.slices.EndpointSlices(service.Namespace).List(selector)
	if err != nil {
		return nil
	}
	var endpoints []endpoint
	for _, slice := range endpointSlices {
		for _, one := range slice.Endpoints {
			if ready := one.Conditions.Ready; ready != nil && !*ready {
				continue
			}
			for _, address := range one.Addresses {
				host := strings.NewReplacer(".", "-", ":", "-").Replace(address)
				if one.Hostname != nil {
					host = *one.Hostname
				}
				endpoints = append(endpoints, endpoint{host, address})
			}
		}
	}
	return endpoints
}

// ports are the SRV records of a named port.
func (server *Server) ports(name string, service *corev1.Service, endpoints []endpoint, port, protocol string, kind uint16) ([]dns.RR, bool) {
	base := fmt.Sprintf("%s.%s.svc.%s", service.Name, service.Namespace, domain)
	for _, known := range service.Spec.Ports {
		if known.Name != port || !strings.EqualFold(string(known.Protocol), protocol) {
			continue
		}
		if kind != dns.TypeSRV {
			return nil, true
		}
		record := func(number int32, target string) dns.RR {
			return &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: uint16(number), Target: target}
		}
		if service.Spec.ClusterIP != corev1.ClusterIPNone {
			return []dns.RR{record(known.Port, base)}, true
		}
		var records []dns.RR
		for _, one := range endpoints {
			number := known.TargetPort.IntVal
			if number == 0 {
				number = known.Port
			}
			records = append(records, record(number, one.host+"."+base))
		}
		return records, true
	}
	return nil, false
}

// podRecords are those of a pod by its address, of which each dot or colon is a dash.
func podRecords(name, host string, kind uint16) ([]dns.RR, bool) {
	for _, separator := range []string{".", ":"} {
		address := strings.ReplaceAll(host, "-", separator)
		if _, err := netip.ParseAddr(address); err == nil {
			return addressRecords(name, []string{address}, kind), true
		}
	}
	return nil, false
}

func addressRecords(name string, addresses []string, kind uint16) []dns.RR {
	var records []dns.RR
	for _, address := range addresses {
		ip := net.ParseIP(address)
		switch v4 := ip.To4(); {
		case v4 != nil && kind == dns.TypeA:
			records = append(records, &dns.A{Hdr: header(name, dns.TypeA), A: v4})
		case ip != nil && v4 == nil && kind == dns.TypeAAAA:
			records = append(records, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip})
		}
	}
	return records
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}
