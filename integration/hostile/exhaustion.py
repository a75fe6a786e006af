"""Takes all there is of what a kernel counts."""

import ctypes
import os
import resource

from probe import call, libc, probe, twin


@probe("open files")
def _():
    held = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        while len(held) < 5000:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    return len(held) >= 5000 and f"{len(held)} descriptors"


@probe("a higher limit for itself", "needs a capability")
def _():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    return f"{hard + 1} files"


@probe("core files")
def _():
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
    return "1 GiB"


@probe("locked memory", "the usual limit is 8 MiB")
def _():
    size = 64 << 20
    memory = libc.mmap
    memory.restype = ctypes.c_void_p
    address = memory(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0))
    call("mlock", ctypes.c_void_p(address), ctypes.c_size_t(size))
    status = open("/proc/self/status").read()
    locked = next(line for line in status.splitlines() if line.startswith("VmLck"))
    return int(locked.split()[1]) >= size >> 10 and locked


@twin("500 open files")
def _():
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(500)]
    return len(held) == 500
