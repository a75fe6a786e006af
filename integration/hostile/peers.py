"""Sockets and FIFOs of the host that lie in a folder bound in, as a forgotten docker.sock does."""

import os
import socket

from probe import FACTS, probe, twin


@probe("a socket of the host")
def _():
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(3)
        peer.connect("/agent/docker.sock")
        peer.send(f"{FACTS['token']}:socket;".encode())
        return peer.recv(16) == b"at your service" and "served"


@probe("a FIFO of the host")
def _():
    descriptor = os.open("/agent/fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, f"{FACTS['token']}:fifo;".encode())
    return "written"


@probe("a device of the host in the bind", "a device cgroup denies it")
def _():
    descriptor = os.open("/agent/device", os.O_RDONLY | os.O_NONBLOCK)
    return os.read(descriptor, 1) and "read"


@twin("a socket and a FIFO of its own")
def _():
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/own.sock")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/tmp/own.sock")
    client.send(b"hello")
    os.mkfifo("/tmp/own.fifo")
    end = os.open("/tmp/own.fifo", os.O_RDWR)
    os.write(end, b"fifo")
    return server.accept()[0].recv(5) == b"hello" and os.read(end, 4) == b"fifo"
