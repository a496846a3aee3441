package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoMethod is that of Istio's service, whose messages have one field, a string
// numbered 1: on the wire they are those of google.protobuf.StringValue.
const (
	echoService = "proto.EchoTestService"
	echoMethod  = "/" + echoService + "/Echo"
)

func (self *server) serveGRPC(port int) error {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	echo := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var request wrapperspb.StringValue
		if err := decode(&request); err != nil {
			return nil, err
		}
		var text strings.Builder
		metadata, _ := metadata.FromIncomingContext(ctx)
		headers(&text, metadata)
		host := strings.Join(metadata.Get(":authority"), ",")
		fmt.Fprintf(&text, "Host=%s\nServiceVersion=%s\nServicePort=%d\nProto=GRPC\nEcho=%s\nHostname=%s\n",
			host, self.version, port, request.Value, self.hostname)
		return wrapperspb.String(text.String()), nil
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: echoService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: echo}},
	}, self)
	return server.Serve(listener)
}

// callGRPC asks a server for an echo, and gives its text.
func callGRPC(ctx context.Context, connection *grpc.ClientConn, headers []string) (string, error) {
	for _, header := range headers {
		if name, value, found := strings.Cut(header, ":"); found {
			ctx = metadata.AppendToOutgoingContext(ctx, name, strings.TrimSpace(value))
		}
	}
	var answer wrapperspb.StringValue
	if err := connection.Invoke(ctx, echoMethod, wrapperspb.String("request"), &answer); err != nil {
		return "", err
	}
	return answer.Value, nil
}

func dialGRPC(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}
