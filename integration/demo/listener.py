"""The attacker's end: counts what arrives, and plays the cloud's metadata service."""

import selectors
import socket
import threading


class Listener:
    """Listens by TCP and UDP on one port of every address; counts bytes by how they came."""

    def __init__(self, credentials):
        self.received = {}
        self._credentials = credentials.encode()
        self._stream = socket.create_server(("0.0.0.0", 0))
        self.port = self._stream.getsockname()[1]
        self._datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagram.bind(("0.0.0.0", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def start_over(self):
        self.received = {}

    def _serve(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self._stream, selectors.EVENT_READ, self._accept)
            selector.register(self._datagram, selectors.EVENT_READ, self._receive)
            while True:
                for key, _ in selector.select():
                    key.data()

    def _count(self, way, content):
        self.received[way] = self.received.get(way, 0) + len(content)

    def _accept(self):
        connection, _ = self._stream.accept()
        with connection:
            # A peer that stays silent must not keep the others waiting for long.
            connection.settimeout(2)
            try:
                while content := connection.recv(65536):
                    self._count(connection.getsockname()[0], content)
                connection.sendall(self._credentials)
            except OSError:
                pass

    def _receive(self):
        self._count("UDP", self._datagram.recv(65536))
