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


@probe("inotify instances of the whole host", "the host has more of them than a process has files")
def _():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = 0
    try:
        while held < hard:
            call("inotify_init1", 0)
            held += 1
    except OSError:
        pass
    # At its own limit of files it has run out of nothing that others need.
    return held < hard - 50 and f"{held}, and no process of that user gets another"


@twin("500 open files")
def _():
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(500)]
    return len(held) == 500
