"""All four kinds of call without a schema: messages are plain bytes."""

import time
from concurrent import futures

import grpc


def trailers(context):
    context.set_trailing_metadata((("x-kind", "trailer"), ("x-raw-bin", b"\x00\xff")))


def unary(request, context):
    trailers(context)
    return b"unary " + request


def server_stream(request, context):
    trailers(context)
    for n in range(3):
        yield request + b" %d" % n


def client_stream(requests, context):
    trailers(context)
    return b"+".join(requests)


def both(requests, context):
    trailers(context)
    for request in requests:
        yield b"echo " + request


def fails(request, context):
    trailers(context)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


def never(request, context):
    while context.is_active():
        time.sleep(0.05)
    return b""


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((
    grpc.method_handlers_generic_handler("test.Kinds", {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Fails": grpc.unary_unary_rpc_method_handler(fails),
        "Never": grpc.unary_unary_rpc_method_handler(never),
    }),
))
server.add_insecure_port("0.0.0.0:50051")
server.start()
server.wait_for_termination()
