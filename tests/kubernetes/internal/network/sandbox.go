package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Sandbox is a pod's network namespace.
type Sandbox struct {
	// V4 and V6 are the pod's addresses.
	V4, V6 string
	// Namespace is the file descriptor of the namespace, -1 for that of the cluster itself.
	Namespace netns.NsHandle

	link string
	pool *Pool
}

// Pool hands out pods' addresses. They are used again as late as possible, so
// that what still talks to a pod that is gone reaches nobody.
type Pool struct {
	mutex sync.Mutex
	next  uint16
	used  map[uint16]bool
}

// NewPool makes a pool of which nothing is used.
func NewPool() *Pool {
	return &Pool{next: 2, used: map[uint16]bool{}}
}

func (pool *Pool) take() (uint16, error) {
	pool.mutex.Lock()
	defer pool.mutex.Unlock()
	for range 1 << 16 {
		number := pool.next
		pool.next++
		// .0 and .255 are left out: some programs take them for networks.
		if last := number & 0xff; number > 1 && last != 0 && last != 255 && !pool.used[number] {
			pool.used[number] = true
			return number, nil
		}
	}
	return 0, errors.New("all addresses of pods are used")
}

func (pool *Pool) give(number uint16) {
	pool.mutex.Lock()
	defer pool.mutex.Unlock()
	delete(pool.used, number)
}

// Shared is the sandbox of a pod in the host's network.
func Shared(v4, v6 string) *Sandbox {
	return &Sandbox{V4: v4, V6: v6, Namespace: -1}
}

// NewSandbox makes a namespace with an address of each family, connected to the cluster.
func NewSandbox(pool *Pool) (*Sandbox, error) {
	number, err := pool.take()
	if err != nil {
		return nil, err
	}
	sandbox := &Sandbox{
		V4:        netip.AddrFrom4([4]byte{10, 244, byte(number >> 8), byte(number)}).String(),
		V6:        fmt.Sprintf("fd00:10:244::%x", number),
		Namespace: -1,
		link:      fmt.Sprintf("pod%d", number),
		pool:      pool,
	}
	if err := sandbox.setUp(); err != nil {
		sandbox.Close()
		return nil, fmt.Errorf("the pod's network: %w", err)
	}
	return sandbox, nil
}

// Close ends the namespace once its last process has.
func (sandbox *Sandbox) Close() {
	if sandbox.pool == nil {
		return
	}
	// The interface goes at once; the namespace when nothing refers to it.
	if link, err := netlink.LinkByName(sandbox.link); err == nil {
		_ = netlink.LinkDel(link)
	}
	if sandbox.Namespace >= 0 {
		_ = sandbox.Namespace.Close()
	}
	if address, err := netip.ParseAddr(sandbox.V4); err == nil {
		bytes := address.As4()
		sandbox.pool.give(uint16(bytes[2])<<8 | uint16(bytes[3]))
	}
	sandbox.pool = nil
}

func (sandbox *Sandbox) setUp() error {
	namespace, err := newNamespace()
	if err != nil {
		return err
	}
	sandbox.Namespace = namespace
	outside := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: sandbox.link},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(namespace),
	}
	if err := netlink.LinkAdd(outside); err != nil {
		return err
	}
	for _, gateway := range sandbox.gateways() {
		if err := netlink.AddrAdd(outside, hostAddress(gateway)); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(outside); err != nil {
		return err
	}
	inside, err := netlink.NewHandleAt(namespace)
	if err != nil {
		return err
	}
	defer inside.Close()
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := inside.LinkSetUp(eth0); err != nil {
		return err
	}
	for address, gateway := range sandbox.gateways() {
		if err := inside.AddrAdd(eth0, hostAddress(address)); err != nil {
			return err
		}
		index, via := eth0.Attrs().Index, net.ParseIP(gateway)
		direct := &netlink.Route{LinkIndex: index, Dst: hostAddress(gateway).IPNet, Scope: netlink.SCOPE_LINK}
		if err := inside.RouteAdd(direct); err != nil {
			return err
		}
		everything := &net.IPNet{IP: make(net.IP, len(hostMask(via))), Mask: make(net.IPMask, len(hostMask(via)))}
		if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Dst: everything, Gw: via}); err != nil {
			return err
		}
		back := &netlink.Route{
			LinkIndex: outside.Attrs().Index,
			Dst:       hostAddress(address).IPNet,
			Src:       via,
			Scope:     netlink.SCOPE_LINK,
		}
		if err := netlink.RouteAdd(back); err != nil {
			return err
		}
	}
	return nil
}

// gateways are the gateways by the pod's address of the same family.
func (sandbox *Sandbox) gateways() map[string]string {
	return map[string]string{sandbox.V4: gatewayV4, sandbox.V6: gatewayV6}
}

// newNamespace makes a network namespace with its loopback interface up and
// the settings that container runtimes give to pods.
func newNamespace() (netns.NsHandle, error) {
	type made struct {
		namespace netns.NsHandle
		err       error
	}
	result := make(chan made)
	go func() {
		// The thread is in the new namespace and is never used again.
		runtime.LockOSThread()
		namespace, err := netns.New()
		if err == nil {
			err = errors.Join(
				sysctl("net/ipv4/ip_unprivileged_port_start", "0"),
				sysctl("net/ipv4/ping_group_range", "0 2147483647"),
				sysctl("net/ipv6/conf/all/accept_dad", "0"),
				sysctl("net/ipv6/conf/default/accept_dad", "0"),
				loopbackUp(),
			)
		}
		result <- made{namespace, err}
	}()
	got := <-result
	return got.namespace, got.err
}

func loopbackUp() error {
	handle, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer handle.Close()
	loopback, err := handle.LinkByName("lo")
	if err != nil {
		return err
	}
	return handle.LinkSetUp(loopback)
}
