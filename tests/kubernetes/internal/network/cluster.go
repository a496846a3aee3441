// Package network is the cluster's network: one network namespace is the
// machine that all nodes share, every pod has one of its own behind a pair of
// virtual interfaces, and rules of nftables make ClusterIPs.
//
// Between pods all traffic is routed, none switched: an answer always takes the
// way back through the rules that translated the request's address.
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
)

// The addresses of every cluster. Each has a namespace of its own, so they never meet.
const (
	// ServicesV4 and ServicesV6 are where ClusterIPs are from.
	ServicesV4 = "10.96.0.0/16"
	ServicesV6 = "fd00:10:96::/112"
	// PodsV4 and PodsV6 are where pods' addresses are from.
	PodsV4 = "10.244.0.0/16"
	PodsV6 = "fd00:10:244::/64"
	// APIServer is where the API server listens.
	APIServer = "10.99.0.1"
	// DNS is where the names of Services are answered.
	DNS = "10.99.0.2"
	// DNSService is the ClusterIP of DNS, as resolv.conf names it.
	DNSService = "10.96.0.10"

	gatewayV4 = "10.244.0.1"
	gatewayV6 = "fd00:10:244::1"
	// A dummy interface would do, but some kernels have none.
	clusterInterface, clusterPeer = "cluster0", "cluster1"
)

// NodeAddresses are the addresses of the node with this number, of both families.
func NodeAddresses(number int) (string, string) {
	return fmt.Sprintf("10.99.0.%d", 11+number), fmt.Sprintf("fd00:10:99::%d", 11+number)
}

// SetUp makes the cluster's network in the namespace that the process is in,
// for this many nodes.
func SetUp(nodes int) error {
	for name, value := range map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
		"net/ipv6/conf/all/forwarding":         "1",
		"net/ipv6/conf/all/accept_dad":         "0",
		"net/ipv6/conf/default/accept_dad":     "0",
	} {
		if err := sysctl(name, value); err != nil {
			return err
		}
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: clusterInterface}, PeerName: clusterPeer}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("the interface %s: %w", clusterInterface, err)
	}
	peer, err := netlink.LinkByName(clusterPeer)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetUp(peer), netlink.LinkSetUp(pair)); err != nil {
		return err
	}
	addresses := []string{APIServer, DNS, "fd00:10:99::1"}
	for number := range nodes {
		v4, v6 := NodeAddresses(number)
		addresses = append(addresses, v4, v6)
	}
	for _, address := range addresses {
		if err := netlink.AddrAdd(pair, hostAddress(address)); err != nil {
			return fmt.Errorf("the address %s: %w", address, err)
		}
	}
	// Without a route a connection to a ClusterIP from here would fail before
	// the rules saw it.
	for services, source := range map[string]string{ServicesV4: APIServer, ServicesV6: "fd00:10:99::1"} {
		_, destination, err := net.ParseCIDR(services)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: pair.Attrs().Index, Dst: destination, Src: net.ParseIP(source), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("the route to %s: %w", services, err)
		}
	}
	return nil
}

// hostAddress is an address alone, which can be used at once.
func hostAddress(address string) *netlink.Addr {
	ip := net.ParseIP(address)
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: hostMask(ip)}, Flags: syscall.IFA_F_NODAD}
}

func hostMask(ip net.IP) net.IPMask {
	if ip.To4() != nil {
		return net.CIDRMask(32, 32)
	}
	return net.CIDRMask(128, 128)
}

// sysctl sets a value of the network namespace that the thread is in. A
// machine without IPv6 lacks that family's.
func sysctl(name, value string) error {
	err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
