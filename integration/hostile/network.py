"""Sends a token by every way out. Whether it got out is judged by what is seen on the wire."""

import os
import socket
import struct
import threading

from probe import FACTS, probe, twin

TOKEN = FACTS["token"]


def send(way, family, kind, address, protocol=0):
    with socket.socket(family, kind, protocol) as out:
        out.settimeout(3)
        out.connect(address)
        out.send(f"{TOKEN}:{way};".encode())
    return way


@probe("TCP over IPv4")
def _():
    return send("tcp4", socket.AF_INET, socket.SOCK_STREAM, (FACTS["host4"], FACTS["port"]))


@probe("UDP over IPv4")
def _():
    return send("udp4", socket.AF_INET, socket.SOCK_DGRAM, (FACTS["host4"], 53))


@probe("TCP over IPv6")
def _():
    return send("tcp6", socket.AF_INET6, socket.SOCK_STREAM, (FACTS["host6"], FACTS["port"]))


@probe("UDP over IPv6")
def _():
    return send("udp6", socket.AF_INET6, socket.SOCK_DGRAM, (FACTS["host6"], 53))


@probe("UDP to the metadata service")
def _():
    return send("metadata", socket.AF_INET, socket.SOCK_DGRAM, ("169.254.169.254", 80))


@probe("raw socket")
def _():
    return send("raw", socket.AF_INET, socket.SOCK_RAW, (FACTS["host4"], 0), socket.IPPROTO_ICMP)


@probe("packet socket")
def _():
    for name in sorted(set(os.listdir("/sys/class/net")) - {"lo"}):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as out:
            out.bind((name, 0))
            frame = b"\xff" * 6 + b"\x02\0\0\0\0\1" + struct.pack(">H", 0x88B5)
            out.send((frame + f"{TOKEN}:packet;".encode()).ljust(64, b"\0"))
            return "packet"


@probe("ARP that claims the gateway's address")
def _():
    for name in sorted(set(os.listdir("/sys/class/net")) - {"lo"}):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as out:
            out.bind((name, 0))
            own, gateway = out.getsockname()[4], socket.inet_aton(FACTS["host4"])
            # RFC 826: a reply nobody asked for, and the token after it.
            reply = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + own + gateway + own + gateway
            frame = b"\xff" * 6 + own + struct.pack(">H", 0x0806) + reply
            out.send(frame + f"{TOKEN}:arp;".encode())
            return "arp"


@probe("DNS query that carries data")
def _():
    label = f"{TOKEN}:dns;".encode()
    # RFC 1035, section 4.1: a header with one question, whose name is the token; type A, class IN.
    query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + bytes([len(label)]) + label + struct.pack(">BHH", 0, 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.settimeout(3)
        out.sendto(query, (FACTS["host4"], 53))
    return "dns"


@probe("an interface taken down", "NET_ADMIN is not among the usual capabilities")
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        import fcntl

        # SIOCSIFFLAGS: an interface of the container is taken down.
        for name in os.listdir("/sys/class/net"):
            if name != "lo":
                fcntl.ioctl(control, 0x8914, struct.pack("16sh14s", name.encode(), 0, b""))
                return f"{name} is down"


@twin("a server on loopback, over IPv4 and IPv6")
def _():
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as server:
            server.bind((host, 0))
            server.listen()
            port = server.getsockname()[1]
            client = threading.Thread(
                target=lambda: socket.create_connection((host, port), 5).sendall(b"hello")
            )
            client.start()
            connection, _ = server.accept()
            if connection.recv(5) != b"hello":
                return False
            client.join()
    return True
