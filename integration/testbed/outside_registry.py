"""Serves an OCI archive on the loopback as the public registries that containerd's own tests pull from: ARCHIVE PORT CERTIFICATE KEY

The names lead here by the hosts file of the testbed, and the certificate is of an authority that only the testbed knows.
"""

import http.server
import os
import ssl
import sys

# Isolated, Python does not look beside the script.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import conformance_registry  # noqa: E402

VOLUMES = {"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}}
OWN, E2E = "containerd/", "e2e-test-images/"
# What the archive's configuration has beside in each.
IMAGES = {
    OWN + "busybox:1.36": {},
    OWN + "alpine:3.14.0": {},
    OWN + "volume-copy-up:2.2": {"Volumes": VOLUMES},
    OWN + "volume-copy-up:2.1": {"Volumes": VOLUMES},
    OWN + "volume-ownership:2.1": {"Volumes": {"/test_dir": {}}},
    E2E + "busybox:1.29-2": {},
    E2E + "resource-consumer:1.10": {},
    # Holds a pod open, or is a container that does nothing.
    "pause:3.10.2": {"Cmd": ["sleep", "2147483647"]},
    "pause:3.6": {"Cmd": ["sleep", "2147483647"]},
    "pause:latest": {"Cmd": ["sleep", "2147483647"]},
}


def main(archive, port, certificate, key):
    registry = conformance_registry.Registry
    registry.served = conformance_registry.furnish(archive, IMAGES)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), registry)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # The handshake is for the thread of its connection: one that says nothing must not keep the others out.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
