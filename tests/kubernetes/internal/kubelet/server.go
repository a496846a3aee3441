// Package kubelet answers what the API server asks of a node: commands to run
// in containers, their logs, connections to pods' ports.
package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"heddle.dev/tests/kubernetes/internal/pod"
)

// Port is where a kubelet listens, on the address of its node.
const Port = 10250

// The limits of one stream: an idle one ends, one that is never begun as well.
const (
	idleLimit  = 4 * time.Hour
	beginLimit = 30 * time.Second
)

// Pods finds a pod on the node, nil if it is not there.
type Pods func(namespace, name string) *pod.Worker

// Serve serves on the address of a node until it fails. Clients need a certificate of the cluster's CA.
func Serve(address, certificate, key, authority string, pods Pods) error {
	roots := x509.NewCertPool()
	text, err := os.ReadFile(authority)
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s has no certificate", authority)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", withPod(pods, execute))
	mux.HandleFunc("/containerLogs/{namespace}/{pod}/{container}", withPod(pods, logs))
	mux.HandleFunc("/portForward/{namespace}/{pod}", withPod(pods, forward))
	server := &http.Server{
		Addr:              net.JoinHostPort(address, fmt.Sprint(Port)),
		Handler:           mux,
		ReadHeaderTimeout: beginLimit,
		// The streams upgrade connections of HTTP/1.1.
		TLSConfig:    &tls.Config{ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return server.ListenAndServeTLS(certificate, key)
}

func withPod(pods Pods, serve func(http.ResponseWriter, *http.Request, *pod.Worker)) http.HandlerFunc {
	return func(writer http.ResponseWriter, request *http.Request) {
		worker := pods(request.PathValue("namespace"), request.PathValue("pod"))
		if worker == nil {
			http.Error(writer, "the pod is not on this node", http.StatusNotFound)
			return
		}
		serve(writer, request, worker)
	}
}

// executor runs commands in the containers of one pod.
type executor struct {
	worker *pod.Worker
}

func (executor executor) ExecInContainer(ctx context.Context, _, _, container string, command []string, in io.Reader, out, errorOutput io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	// A nil stream in an interface is not nil to those who look.
	var output, complaints io.Writer
	if out != nil {
		output = out
	}
	if errorOutput != nil {
		complaints = errorOutput
	}
	err := executor.worker.Exec(ctx, container, command, in, output, complaints)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

// PortForward carries a stream to a port of the pod and back.
func (executor executor) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	connection, err := executor.worker.Dial(port)
	if err != nil {
		return err
	}
	defer connection.Close()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(connection, stream)
		if tcp, ok := connection.(*net.TCPConn); ok && err == nil {
			err = tcp.CloseWrite()
		}
		ended <- err
	}()
	go func() {
		_, err := io.Copy(stream, connection)
		ended <- err
		ended <- nil
	}()
	// Once the pod's side is done, nobody is left to answer.
	err = <-ended
	if err == nil {
		err = <-ended
	}
	return err
}

func execute(writer http.ResponseWriter, request *http.Request, worker *pod.Worker) {
	options, err := remotecommand.NewOptions(request)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	command := request.URL.Query()["command"]
	remotecommand.ServeExec(writer, request, executor{worker}, request.PathValue("pod"), "", request.PathValue("container"),
		command, options, idleLimit, beginLimit, remotecommand.SupportedStreamingProtocols)
}

func forward(writer http.ResponseWriter, request *http.Request, worker *pod.Worker) {
	options, err := portforward.NewV4Options(request)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(writer, request, executor{worker}, request.PathValue("pod"), "", options,
		idleLimit, beginLimit, portforward.SupportedProtocols)
}

func logs(writer http.ResponseWriter, request *http.Request, worker *pod.Worker) {
	path, ended, err := worker.Log(request.PathValue("container"))
	if err != nil {
		http.Error(writer, err.Error(), http.StatusNotFound)
		return
	}
	query := request.URL.Query()
	if err := writeLog(request.Context(), writer, path, query.Get("tailLines"), query.Get("follow") == "true", ended); err != nil {
		slog.Warn("a log is not sent to its end", "error", err)
	}
}
