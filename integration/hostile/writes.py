"""Writes where it should not, and tries to change what is mounted where."""

import ctypes
import os

from probe import call, probe, syscall, twin

NEWNS, NEWUSER, NEWNET, NEWPID = 0x20000, 0x10000000, 0x40000000, 0x20000000
CAPABILITY = "needs a capability that is not among the usual ones"


def written(folder):
    path = os.path.join(folder, ".hostile")
    with open(path, "w") as file:
        file.write("here")
    os.unlink(path)
    return path


for place in ("/", "/etc", "/usr/bin", "/usr/lib", "/var/tmp", "/home/agent", "/root", "/opt", "/srv"):
    probe(f"write to {place}")(lambda: written(place))


@probe("replace a program of the image")
def _():
    with open("/usr/bin/id", "r+b") as file:
        return file.write(b"\x7fELF")


@probe("a file in /dev")
def _():
    return written("/dev")


@probe("mount", CAPABILITY)
def _():
    call("mount", b"none", b"/mnt", b"tmpfs", 0, b"")
    return "a tmpfs at /mnt"


@probe("remount the root writable", CAPABILITY)
def _():
    call("mount", b"none", b"/", None, 32, None)
    return "remounted"


@probe("unmount what hides a folder", CAPABILITY)
def _():
    call("umount2", b"/proc", 2)
    return "unmounted"


@probe("a user namespace")
def _():
    call("unshare", NEWUSER)
    return "a namespace with all capabilities"


@probe("mount in a user namespace")
def _():
    call("unshare", NEWUSER | NEWNS)
    call("mount", b"none", b"/tmp", b"tmpfs", 0, b"")
    return "a tmpfs at /tmp"


@probe("remount in a user namespace", "what is locked stays locked")
def _():
    call("unshare", NEWUSER | NEWNS)
    call("mount", b"none", b"/sys", None, 32, None)
    return "remounted"


@probe("a network namespace", CAPABILITY)
def _():
    call("unshare", NEWNET)
    return "unshared"


@probe("a network namespace in a user namespace")
def _():
    call("unshare", NEWUSER | NEWNET)
    return "unshared"


@probe("the namespaces of init", "they are its own already, and joining needs a capability")
def _():
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        descriptor = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
        call("setns", descriptor, 0)
    return "joined"


@probe("pivot_root", CAPABILITY)
def _():
    syscall("pivot_root", b"/tmp", b"/tmp")
    return "pivoted"


@probe("the mount table by fsopen", CAPABILITY)
def _():
    return f"descriptor {syscall('fsopen', b'tmpfs', 0)}"


@probe("the mount table by open_tree", CAPABILITY)
def _():
    # OPEN_TREE_CLONE
    return f"descriptor {syscall('open_tree', -100, b'/', 1)}"


@probe("chroot")
def _():
    os.mkdir("/tmp/jail")
    os.chroot("/tmp/jail")
    return "chrooted"


@probe("out of the root by chroot", "the root of a mount namespace has no parent")
def _():
    root = os.stat("/").st_ino
    os.makedirs("/tmp/deep", exist_ok=True)
    os.chroot("/tmp/deep")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return os.stat("/").st_ino != root and "another root"


@probe("capabilities by capset", "they cannot be raised")
def _():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    call("capset", ctypes.byref(header), ctypes.byref(data))
    return "raised"


@probe("a file with the capabilities of another")
def _():
    # Version 2 of a file's capabilities: CAP_NET_RAW, effective.
    value = (0x02000001).to_bytes(4, "little") + (1 << 13).to_bytes(4, "little") + bytes(12)
    path = "/var/tmp/.capable"
    with open(path, "w") as file:
        file.write("x")
    try:
        os.setxattr(path, "security.capability", value)
    finally:
        os.unlink(path)
    return "written"


@twin("files and folders in scratch")
def _():
    for place in ("/tmp", "/run", "/dev/shm"):
        folder = os.path.join(place, "work")
        os.makedirs(folder)
        with open(os.path.join(folder, "a"), "w") as file:
            file.write("x")
        os.rename(os.path.join(folder, "a"), os.path.join(folder, "b"))
        os.symlink("b", os.path.join(folder, "c"))
        if open(os.path.join(folder, "c")).read() != "x":
            return False
    return True
