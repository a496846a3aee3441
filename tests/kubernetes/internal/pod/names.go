package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"heddle.dev/tests/kubernetes/internal/network"
)

// writeNames writes the files by which a pod's programs find names.
func (worker *Worker) writeNames(pod *corev1.Pod, sandbox *network.Sandbox) error {
	if err := os.MkdirAll(worker.directory, 0o755); err != nil {
		return err
	}
	hostname := worker.hostname(pod)
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	fmt.Fprintf(&hosts, "%s %s\n%s %s\n", sandbox.V4, hostname, sandbox.V6, hostname)
	for _, alias := range pod.Spec.HostAliases {
		fmt.Fprintf(&hosts, "%s %s\n", alias.IP, strings.Join(alias.Hostnames, " "))
	}
	for name, text := range map[string]string{
		"hosts": hosts.String(), "hostname": hostname + "\n", "resolv.conf": resolvConf(pod),
	} {
		if err := os.WriteFile(filepath.Join(worker.directory, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (worker *Worker) hostname(pod *corev1.Pod) string {
	switch {
	case pod.Spec.HostNetwork:
		return worker.host.Name
	case pod.Spec.Hostname != "":
		return pod.Spec.Hostname
	}
	// The kernel takes no more.
	return pod.Name[:min(len(pod.Name), 63)]
}

// resolvConf is that of the pod's DNS policy. The machine's own servers are
// never used: there is nothing outside that a test should reach.
func resolvConf(pod *corev1.Pod) string {
	var servers, searches, options []string
	if pod.Spec.DNSPolicy != corev1.DNSNone {
		servers = []string{network.DNSService}
		searches = []string{pod.Namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}
		options = []string{"ndots:5"}
	}
	if config := pod.Spec.DNSConfig; config != nil {
		servers, searches = append(servers, config.Nameservers...), append(searches, config.Searches...)
		for _, option := range config.Options {
			text := option.Name
			if option.Value != nil {
				text += ":" + *option.Value
			}
			options = slices.DeleteFunc(options, func(known string) bool {
				return strings.HasPrefix(known, option.Name+":")
			})
			options = append(options, text)
		}
	}
	var text strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", server)
	}
	if len(searches) > 0 {
		fmt.Fprintf(&text, "search %s\n", strings.Join(searches, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&text, "options %s\n", strings.Join(options, " "))
	}
	return text.String()
}
