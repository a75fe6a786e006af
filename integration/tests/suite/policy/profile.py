"""What the seccomp filter of this process decides of every system call, without making those that it allows.

The profile has TRAP in the place of ERRNO, so SIGSYS is the filter's word. A second filter, installed here, answers a call whose
last argument is MAGIC with an errno that nothing else gives: TRAP passes it, so a call that gets there is allowed. Without MAGIC
the call reaches the sentry.
"""

import ctypes
import json
import mmap
import os
import signal
import struct
import sys

MAGIC, ALLOWED = 0x62756C6B, 1099
IS_AMD64 = os.uname().machine == "x86_64"
CLONE, SIGRETURN = (56, 15) if IS_AMD64 else (220, 139)
libc = ctypes.CDLL(None, use_errno=True)
trapped = []
signal.signal(signal.SIGSYS, lambda *_: trapped.append(1))


def filter_by_magic():
    """ERRNO for a last argument of MAGIC (`linux/filter.h`, `linux/seccomp.h`); not for rt_sigreturn, by which the handler of
    SIGSYS ends with the registers of the call that was trapped."""
    code = [
        (0x20, 0, 0, 0), (0x15, 3, 0, SIGRETURN), (0x20, 0, 0, 56), (0x15, 0, 1, MAGIC),
        (0x06, 0, 0, 0x00050000 | ALLOWED), (0x06, 0, 0, 0x7FFF0000),
    ]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)))
    if libc.prctl(22, 2, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "install a filter")


def word(number, arguments=(), magic=MAGIC):
    """`trap` or `allowed` by the filter, else the errno."""
    if (number, magic) == (SIGRETURN, MAGIC):
        # Made by each handler that has returned.
        return "allowed"
    trapped.clear()
    arguments = (list(arguments) + [0] * 5)[:5] + [magic]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    errno = ctypes.get_errno()
    if trapped:
        return "trap"
    if result != -1:
        return f"result {result}"
    return "allowed" if errno == ALLOWED else errno


def by_interrupt(number):
    """The end of a child that makes a 32-bit call: its own pid would be an answer."""
    child = os.fork()
    if child == 0:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        # mov eax, number; int 0x80; ret
        code.write(b"\xb8" + struct.pack("I", number) + b"\xcd\x80\xc3")
        signal.signal(signal.SIGSYS, signal.SIG_DFL)
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        result = call()
        os._exit(0 if result >= 0 else min(-result, 99))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


filter_by_magic()
table = set(json.loads(sys.argv[1]))
# CLONE_NEW*: none, each, each beside a thread's flags, all.
spaces = [1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)]
flags = [0, 0x11, 0x3D0F00] + spaces + [one | 0x3D0F00 for one in spaces] + [sum(spaces)]
print(json.dumps({
    "table": {number: word(number, [-1] * 5) for number in sorted(table)},
    "beyond": {number: word(number, magic=0) for number in range(1024) if number not in table},
    "clone": [word(CLONE, [one]) for one in flags],
    "clone3": word(435, magic=0),
    "x32": [word(0x40000000 | number, magic=0) for number in range(600)],
    "negative": [word(number, magic=0) for number in (-2, 0xFFFFFFFF, 1 << 20, 1 << 31)],
    # exit, getpid, mount, setuid, ptrace of i386.
    "i386": [by_interrupt(number) for number in (20, 21, 23, 26)] if IS_AMD64 else [],
}))
