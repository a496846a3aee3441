"""Makes all four kinds of call and states what must come back; prints `passed`."""

import queue
import time

import grpc

channel = grpc.insecure_channel("kinds:50051")
TRAILERS = {("x-kind", "trailer"), ("x-raw-bin", b"\x00\xff")}


def has_trailers(call):
    assert TRAILERS <= {tuple(pair) for pair in call.trailing_metadata()}, call.trailing_metadata()
    return True


answer, call = channel.unary_unary("/test.Kinds/Unary").with_call(b"a", timeout=20, wait_for_ready=True)
assert answer == b"unary a" and call.code() == grpc.StatusCode.OK and has_trailers(call), answer

call = channel.unary_stream("/test.Kinds/ServerStream")(b"s", timeout=20)
assert list(call) == [b"s 0", b"s 1", b"s 2"] and has_trailers(call)

answer, call = channel.stream_unary("/test.Kinds/ClientStream").with_call(iter([b"x", b"y"]), timeout=20)
assert answer == b"x+y" and has_trailers(call), answer

# Each message is sent only after the answer to the one before: nothing on the way may wait for more.
requests = queue.Queue()
call = channel.stream_stream("/test.Kinds/Both")(iter(requests.get, None), timeout=20)
for n in range(3):
    requests.put(b"%d" % n)
    assert next(call) == b"echo %d" % n
requests.put(None)
assert list(call) == [] and has_trailers(call)

large = b"z" * 3_000_000
assert channel.unary_unary("/test.Kinds/Unary")(large, timeout=20) == b"unary " + large

try:
    channel.unary_unary("/test.Kinds/Fails")(b"", timeout=20)
    raise AssertionError("it must fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "not today" and has_trailers(error), error

begun = time.monotonic()
try:
    channel.unary_unary("/test.Kinds/Never")(b"", timeout=0.5)
    raise AssertionError("it must not answer")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - begun < 20

print("passed")
