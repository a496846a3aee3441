// Command node is the nodes of a test cluster. It runs each pod as processes in
// namespaces of their own, and is what kubelets, kube-proxies and the DNS are in
// other clusters. It is root in a network namespace that the cluster has for itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"heddle.dev/tests/kubernetes/internal/container"
	"heddle.dev/tests/kubernetes/internal/dns"
	"heddle.dev/tests/kubernetes/internal/images"
	"heddle.dev/tests/kubernetes/internal/kubelet"
	"heddle.dev/tests/kubernetes/internal/network"
	"heddle.dev/tests/kubernetes/internal/node"
	"heddle.dev/tests/kubernetes/internal/pod"
)

func init() {
	// The first thread can not be thrown away, so no goroutine may take it into another namespace.
	runtime.LockOSThread()
	container.Init()
}

// settings are the command line's.
type settings struct {
	networkOnly                            bool
	kubeconfig, images, directory          string
	certificate, key, certificateAuthority string
	nodes                                  int
	verbose                                bool
}

func main() {
	var settings settings
	flag.BoolVar(&settings.networkOnly, "network", false, "make the cluster's network, and end")
	flag.StringVar(&settings.kubeconfig, "kubeconfig", "", "how to reach the API server")
	flag.StringVar(&settings.images, "images", "", "what images stand for, as JSON")
	flag.StringVar(&settings.directory, "directory", "", "where pods' files are kept")
	flag.StringVar(&settings.certificate, "tls-cert", "", "the certificate that the kubelets serve with")
	flag.StringVar(&settings.key, "tls-key", "", "its key")
	flag.StringVar(&settings.certificateAuthority, "client-ca", "", "who issues certificates to the kubelets' clients")
	flag.IntVar(&settings.nodes, "nodes", 1, "how many nodes there are")
	flag.BoolVar(&settings.verbose, "verbose", false, "tell of every probe that fails")
	flag.Parse()
	level := slog.LevelInfo
	if settings.verbose {
		level = slog.LevelDebug
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err := run(settings); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func run(settings settings) error {
	if settings.networkOnly {
		return network.SetUp(settings.nodes)
	}
	ctx := context.Background()
	config, err := clientcmd.BuildConfigFromFlags("", settings.kubeconfig)
	if err != nil {
		return err
	}
	// Nobody else is to be spared.
	config.QPS, config.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	catalogue, err := images.Read(settings.images)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	proxy, err := network.NewProxy(factory)
	if err != nil {
		return err
	}
	pods, err := node.NewPods(client, factory, catalogue, settings.directory, settings.nodes)
	if err != nil {
		return err
	}
	names := dns.New(factory)
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	failed := make(chan error, settings.nodes+1)
	go proxy.Run(ctx)
	go func() { failed <- names.Serve(network.DNS) }()
	go announceDNS(ctx, client)
	for number := range settings.nodes {
		go node.Announce(ctx, client, number)
		address, _ := network.NodeAddresses(number)
		find := func(namespace, name string) *pod.Worker { return pods.Find(node.Name(number), namespace, name) }
		go func() {
			failed <- kubelet.Serve(address, settings.certificate, settings.key, settings.certificateAuthority, find)
		}()
	}
	return <-failed
}

func announceDNS(ctx context.Context, client kubernetes.Interface) {
	for {
		err := node.AnnounceDNS(ctx, client)
		if err == nil || errors.Is(err, context.Canceled) {
			return
		}
		slog.Warn("the Service of the DNS is not made yet", "error", err)
		time.Sleep(time.Second)
	}
}
