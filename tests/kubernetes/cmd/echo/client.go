package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// most is the most of a body that is read: an answer of the server is far shorter.
const most = 1 << 20

// settings are those of the client's command line.
type settings struct {
	method  string
	headers []string
	count   int
	timeout time.Duration
}

func request(args []string) error {
	var settings settings
	flags := pflag.NewFlagSet("client", pflag.ContinueOnError)
	flags.StringVar(&settings.method, "method", http.MethodGet, "the method of HTTP")
	flags.StringArrayVarP(&settings.headers, "header", "H", nil, "a header, NAME:VALUE")
	flags.IntVar(&settings.count, "count", 1, "how many requests are sent")
	flags.DurationVar(&settings.timeout, "timeout", 15*time.Second, "how long each may take")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("client: one URL, please")
	}
	target, err := url.Parse(flags.Arg(0))
	if err != nil {
		return err
	}
	send := settings.sendHTTP(target)
	if target.Scheme == "grpc" {
		if send, err = settings.sendGRPC(target); err != nil {
			return err
		}
	}
	for number := range settings.count {
		text, err := send(number)
		if err != nil {
			return fmt.Errorf("[%d] error: %w", number, err)
		}
		// Answers are told apart by an empty line.
		fmt.Fprintln(os.Stdout, text)
	}
	return nil
}

// sendHTTP sends requests by HTTP, of which redirects are answers like others.
func (settings settings) sendHTTP(target *url.URL) func(int) (string, error) {
	client := &http.Client{
		Timeout:       settings.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// Servers of tests sign for themselves.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	return func(number int) (string, error) {
		request, err := http.NewRequest(settings.method, target.String(), nil)
		if err != nil {
			return "", err
		}
		for _, header := range settings.headers {
			name, value, _ := strings.Cut(header, ":")
			value = strings.TrimSpace(value)
			if strings.EqualFold(name, "host") {
				request.Host = value
				continue
			}
			request.Header.Add(name, value)
		}
		begun := time.Now()
		response, err := client.Do(request)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(io.LimitReader(response.Body, most))
		if err != nil {
			return "", err
		}
		var text strings.Builder
		fmt.Fprintf(&text, "[%d] Url=%s\n[%d] Latency=%s\n[%d] StatusCode=%d\n", number, target, number, time.Since(begun), number, response.StatusCode)
		var names []string
		for name := range response.Header {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			for _, value := range response.Header[name] {
				fmt.Fprintf(&text, "[%d] ResponseHeader=%s:%s\n", number, name, value)
			}
		}
		writeBody(&text, number, string(body))
		return text.String(), nil
	}
}

func (settings settings) sendGRPC(target *url.URL) (func(int) (string, error), error) {
	connection, err := dialGRPC(target.Host)
	if err != nil {
		return nil, err
	}
	return func(number int) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), settings.timeout)
		defer cancel()
		answer, err := callGRPC(ctx, connection, settings.headers)
		if err != nil {
			return "", err
		}
		var text strings.Builder
		fmt.Fprintf(&text, "[%d] Url=%s\n[%d] StatusCode=200\n", number, target, number)
		writeBody(&text, number, answer)
		return text.String(), nil
	}, nil
}

func writeBody(text *strings.Builder, number int, body string) {
	for line := range strings.Lines(body) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			fmt.Fprintf(text, "[%d body] %s\n", number, line)
		}
	}
}
