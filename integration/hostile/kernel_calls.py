"""System calls that reach other processes or deep into a kernel."""

import ctypes
import os
import time

from probe import call, probe, syscall, twin

CAPABILITY = "needs a capability that is not among the usual ones"


def child():
    """A child that waits, and the address of what it holds."""
    text = ctypes.create_string_buffer(b"held by the child")
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    return pid, ctypes.addressof(text)


@probe("ptrace another process")
def _():
    pid, _ = child()
    call("ptrace", 16, pid, None, None)
    return f"attached to {pid}"


@probe("memory of another process by process_vm_readv")
def _():
    pid, address = child()
    into = ctypes.create_string_buffer(17)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(into), 17)
    remote = (ctypes.c_size_t * 2)(address, 17)
    syscall("process_vm_readv", pid, local, 1, remote, 1, 0)
    return into.raw.decode() == "held by the child" and "read"


@probe("compare kernel objects by kcmp")
def _():
    pid, _ = child()
    return syscall("kcmp", os.getpid(), pid, 1, 0, 0) >= 0 and "compared"


@probe("a key in the kernel's keyring")
def _():
    return f"key {syscall('add_key', b'user', b'hostile', b'x', 1, -3)}"


@probe("the session keyring by keyctl")
def _():
    return f"keyring {syscall('keyctl', 0, -3, 1)}"


@probe("io_uring")
def _():
    return f"descriptor {syscall('io_uring_setup', 8, ctypes.create_string_buffer(120))}"


@probe("userfaultfd")
def _():
    return f"descriptor {syscall('userfaultfd', 1)}"


@probe("bpf", "unprivileged bpf is switched off on this kernel")
def _():
    attributes = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
    return f"descriptor {syscall('bpf', 0, attributes, 128)}"


@probe("perf_event_open")
def _():
    attributes = ctypes.create_string_buffer(128)
    # PERF_TYPE_SOFTWARE, size 128, PERF_COUNT_SW_CPU_CLOCK, exclude_kernel
    ctypes.memmove(attributes, (1).to_bytes(4, "little") + (128).to_bytes(4, "little"), 8)
    attributes[40] = 0x20
    return f"descriptor {syscall('perf_event_open', attributes, 0, -1, -1, 0)}"


@probe("load a module by init_module", CAPABILITY)
def _():
    syscall("init_module", b"x", 1, b"")
    return "loaded"


@probe("load a module by finit_module", CAPABILITY)
def _():
    syscall("finit_module", os.open("/usr/bin/python3", os.O_RDONLY), b"", 0)
    return "loaded"


@probe("kexec", CAPABILITY)
def _():
    syscall("kexec_load", 0, 0, None, 0)
    return "loaded"


@probe("reboot", CAPABILITY)
def _():
    # LINUX_REBOOT_CMD_CAD_OFF changes a setting and restarts nothing.
    call("reboot", 0)
    return "switched"


@probe("swap", CAPABILITY)
def _():
    call("swapoff", b"/nothing")
    return "switched"


@probe("the clock", CAPABILITY)
def _():
    # The time it is: nothing changes where it is allowed.
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return "set"


@probe("real-time priority", CAPABILITY)
def _():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    return "real-time"


@probe("a name for the machine", CAPABILITY)
def _():
    call("sethostname", b"hostile", 7)
    return os.uname().nodename


@probe("an open file by handle", CAPABILITY)
def _():
    handle = (ctypes.c_uint32 * 34)(128, 1)
    mount = ctypes.c_int()
    call("name_to_handle_at", -100, b"/etc", handle, ctypes.byref(mount), 0)
    descriptor = call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, os.O_RDONLY)
    return f"descriptor {descriptor}"


@twin("futexes, timers, signals, pipes, epoll")
def _():
    import select
    import signal
    import threading

    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    reader, writer = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN)
    thread = threading.Timer(0.1, lambda: os.write(writer, b"x"))
    thread.start()
    events = poll.poll(5)
    thread.join()
    return bool(events) and seen == [1]
