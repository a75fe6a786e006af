"""What nobody asked for: looks for whatever a sandbox should not give, and says of each what it got."""

import ctypes
import glob
import os
import platform
import socket

libc = ctypes.CDLL(None, use_errno=True)


def attempt(what, act):
    try:
        got = act()
    except OSError as error:
        got, why = None, f" ({error.strerror or error})"
    else:
        why = ""
    print(f"{what}: {f'GOT {got}' if got else f'nothing{why}'}")


def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "it"


def secrets():
    """Keys in the environment of any process that can be seen."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        with open(path, "rb") as file:
            found += [word.decode() for word in file.read().split(b"\0") if b"KEY" in word]
    return found


def sockets():
    wanted = ["/run/containerd/containerd.sock", "/run/docker.sock", "/var/run/docker.sock"]
    return [path for path in wanted if os.path.exists(path)]


def send(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(3)
        stream.connect((address, 80))
    return "a connection"


def written():
    """Folders outside of the scratch that take a file."""
    found = []
    for folder in ["/", "/etc", "/home", "/opt", "/root", "/srv", "/usr/bin", "/usr/lib", "/var/lib", "/var/tmp", "/proc/sys"]:
        try:
            with open(f"{folder}/left-behind", "w"):
                found.append(folder)
        except OSError:
            pass
    return found


def host_kernel():
    """The sentry's kernel says who it is in its log; the host's keeps quiet or says something else."""
    buffer = ctypes.create_string_buffer(1 << 16)
    size = max(libc.klogctl(3, buffer, len(buffer)), 0)
    return None if b"gVisor" in buffer.raw[:size] else f"Linux {platform.release()}"


attempt("keys in the environment of a process", secrets)
attempt("a socket of a container engine", sockets)
attempt("the metadata service", lambda: send(socket.AF_INET, "169.254.169.254"))
attempt("a name server by IPv6", lambda: send(socket.AF_INET6, "2001:db8::53"))
attempt("a folder outside of the scratch to write to", written)
attempt("the host's kernel", host_kernel)
attempt("another user's identity", lambda: call("setuid", 1))
attempt("a mount", lambda: call("mount", b"none", b"/work", b"tmpfs", 0, None))
attempt("a user namespace", lambda: call("unshare", 0x10000000))
attempt("another root", lambda: call("chroot", b"/work"))
