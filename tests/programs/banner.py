"""A mail server's beginning: it speaks first, then repeats what it is told."""

import socketserver


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 mail ready\r\n")
        for line in self.rfile:
            self.wfile.write(b"250 " + line)


socketserver.ThreadingTCPServer(("0.0.0.0", 25), Session).serve_forever()
