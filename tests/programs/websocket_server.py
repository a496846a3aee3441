"""Repeats every WebSocket message."""

from websockets.sync.server import serve


def echo(socket):
    for message in socket:
        socket.send(message)


with serve(echo, "0.0.0.0", 8000) as server:
    server.serve_forever()
