"""Prints how long a banner took in milliseconds, the banner, and an answer.

The first connection pays for the handshake; the second is the one that is measured.
"""

import socket
import time


def talk():
    begun = time.monotonic()
    with socket.create_connection(("mail", 25)) as mail:
        banner = mail.recv(99)
        took = time.monotonic() - begun
        mail.sendall(b"HELO me\r\n")
        return took, banner, mail.recv(99)


talk()
took, banner, answer = talk()
print(int(took * 1000), banner.decode().strip(), answer.decode().strip(), sep="\n")
