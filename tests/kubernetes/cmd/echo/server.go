package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// drain is how long a server that was told to end finishes what it has begun.
const drain = 5 * time.Second

// server is what is told about the server itself.
type server struct {
	hostname, version string
}

func serve(args []string) error {
	flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
	plain := flags.IntSlice("port", []int{8080}, "ports of HTTP/1.1 and HTTP/2")
	secure := flags.IntSlice("tls", nil, "those of the ports that have TLS")
	grpcPorts := flags.IntSlice("grpc", nil, "ports of gRPC")
	tcp := flags.IntSlice("tcp", nil, "ports of TCP")
	certificate := flags.String("crt", "", "the certificate of TLS; without the file one is made")
	key := flags.String("key", "", "its key")
	version := flags.String("version", "", "what is told as the version")
	if err := flags.Parse(args); err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	self := &server{hostname, *version}
	failed := make(chan error)
	var servers []*http.Server
	for _, port := range *plain {
		one := self.http(port)
		servers = append(servers, one)
		if slices.Contains(*secure, port) {
			if one.TLSConfig, err = identity(*certificate, *key); err != nil {
				return err
			}
			go func() { failed <- one.ListenAndServeTLS("", "") }()
			continue
		}
		go func() { failed <- one.ListenAndServe() }()
	}
	for _, port := range *tcp {
		go func() { failed <- self.serveTCP(port) }()
	}
	for _, port := range *grpcPorts {
		go func() { failed <- self.serveGRPC(port) }()
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-failed:
		return err
	case <-ended:
	}
	limited, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	for _, one := range servers {
		err = errors.Join(err, one.Shutdown(limited))
	}
	return err
}

func (self *server) http(port int) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Addr: ":" + strconv.Itoa(port), Protocols: protocols, ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			writer.Header().Set("Content-Type", "text/plain")
			for _, header := range request.URL.Query()["headers"] {
				if name, value, found := strings.Cut(header, ":"); found {
					writer.Header().Set(name, value)
				}
			}
			if code, err := strconv.Atoi(request.URL.Query().Get("codes")); err == nil && code >= 200 && code < 600 {
				writer.WriteHeader(code)
			}
			fmt.Fprint(writer, self.describe(request, port))
		}),
	}
}

// describe is the answer to a request, a line for each thing that there is to know.
func (self *server) describe(request *http.Request, port int) string {
	var text strings.Builder
	headers(&text, request.Header)
	alpn := ""
	if request.TLS != nil {
		alpn = request.TLS.NegotiatedProtocol
	}
	ip, _, err := net.SplitHostPort(request.RemoteAddr)
	if err != nil {
		ip = request.RemoteAddr
	}
	for _, field := range [][2]string{
		{"Host", request.Host}, {"ServiceVersion", self.version}, {"ServicePort", strconv.Itoa(port)},
		{"URL", request.URL.RequestURI()}, {"Method", request.Method}, {"Proto", request.Proto}, {"Alpn", alpn}, {"IP", ip},
		{"Hostname", self.hostname},
	} {
		fmt.Fprintf(&text, "%s=%s\n", field[0], field[1])
	}
	return text.String()
}

func headers(text *strings.Builder, headers map[string][]string) {
	names := make([]string, 0, len(headers))
	for name := range headers {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		for _, value := range headers[name] {
			fmt.Fprintf(text, "RequestHeader=%s:%s\n", name, value)
		}
	}
}

// serveTCP answers each line with itself, and with who answers.
func (self *server) serveTCP(port int) error {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			lines := bufio.NewScanner(connection)
			for lines.Scan() {
				if _, err := fmt.Fprintf(connection, "%s\nHostname=%s\nStatusCode=200\n", lines.Text(), self.hostname); err != nil {
					return
				}
			}
		}()
	}
}

// identity is the certificate of files, or one that signs itself.
func identity(certificate, key string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if errors.Is(err, os.ErrNotExist) {
		pair, err = selfSigned()
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, err
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"echo"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
