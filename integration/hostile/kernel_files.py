"""Files that steer a kernel, and nodes of devices."""

import os
import stat

from probe import probe, twin

DEVICES = "a device cgroup denies it"
READ_ONLY = "containerd mounts it read-only"


def write(path, text):
    before = open(path).read() if os.access(path, os.R_OK) else ""
    with open(path, "w") as file:
        file.write(text or before)
    return f"wrote {path}"


for path, text, reason in (
    # What is written changes nothing: a no-op of sysrq, and the value that is there.
    ("/proc/sysrq-trigger", "h", READ_ONLY),
    ("/proc/sys/kernel/core_pattern", "", READ_ONLY),
    ("/proc/sys/kernel/hostname", "", READ_ONLY),
    ("/proc/sys/vm/drop_caches", "1", READ_ONLY),
    ("/proc/sys/net/ipv4/ip_forward", "", READ_ONLY),
    ("/proc/irq/default_smp_affinity", "", READ_ONLY),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "", READ_ONLY),
    ("/sys/power/state", "x", READ_ONLY),
    ("/sys/fs/cgroup/cgroup.procs", "0", "no cgroup is mounted"),
    ("/sys/kernel/uevent_helper", "", READ_ONLY),
):
    probe(f"write {path}", reason)(lambda: write(path, text))


def node(name, kind, major, minor):
    path = f"/dev/shm/{name}"
    os.mknod(path, kind | 0o666, os.makedev(major, minor))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        got = os.read(descriptor, 1)
        return f"{name} is open, {len(got)} byte"
    finally:
        os.unlink(path)


for name, kind, major, minor in (
    ("mem", stat.S_IFCHR, 1, 1), ("kmsg", stat.S_IFCHR, 1, 11), ("fuse", stat.S_IFCHR, 10, 229),
    ("tun", stat.S_IFCHR, 10, 200), ("kvm", stat.S_IFCHR, 10, 232), ("vda", stat.S_IFBLK, 254, 0),
    ("sda", stat.S_IFBLK, 8, 0), ("loop0", stat.S_IFBLK, 7, 0),
):  # fmt: skip
    probe(f"make and open the device {name}", DEVICES)(lambda: node(name, kind, major, minor))


@probe("make the node of a device")
def _():
    os.mknod("/var/tmp/.node", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    os.unlink("/var/tmp/.node")
    return "made"


for path in ("/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/net/tun", "/dev/kvm", "/dev/vda", "/dev/sda"):
    probe(f"open {path}", "containerd makes no such node")(
        lambda: os.read(os.open(path, os.O_RDWR | os.O_NONBLOCK), 1) and "read"
    )


@probe("the kernel's log", "kernel.dmesg_restrict is set on this host")
def _():
    import ctypes

    from probe import FACTS, call

    text = ctypes.create_string_buffer(1 << 20)
    call("klogctl", 3, text, len(text))
    return FACTS["release"] in text.value.decode(errors="replace") and "the host's"


@probe("memory of the kernel by /proc/kcore", "containerd hides it")
def _():
    with open("/proc/kcore", "rb") as file:
        return len(file.read(4096))


@twin("null, zero, full, random and a terminal of its own")
def _():
    with open("/dev/null", "w") as null:
        null.write("x")
    zero = open("/dev/zero", "rb").read(16)
    random = open("/dev/urandom", "rb").read(16)
    try:
        with open("/dev/full", "w") as full:
            full.write("x")
        return False
    except OSError:
        pass
    master, slave = os.openpty()
    os.write(slave, b"hello")
    return zero == bytes(16) and len(set(random)) > 1 and os.read(master, 5) == b"hello"
