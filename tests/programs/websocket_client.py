"""Sends WebSocket messages of several sizes, each after the one before came back; prints `passed`."""

from websockets.sync.client import connect

with connect("ws://chat:8000/", max_size=None) as socket:
    for message in ["hello", b"\x00\xff", "x" * 200_000]:
        socket.send(message)
        assert socket.recv(timeout=20) == message
print("passed")
