"""What every hostile program stands on. A probe is one attempt whose effect is looked at; each prints one line of JSON.

A probe returns what it got; whatever raises, is killed, or takes too long got nothing. Each runs in a process of its own,
so that a crash or a changed namespace is its own alone.
"""

import ctypes
import json
import os
import platform
import select
import signal
import sys
import time
import traceback

LIMIT = 20
libc = ctypes.CDLL(None, use_errno=True)
# Numbers of what libc has no function for; from 424 on they are the same everywhere.
NUMBERS = {
    "x86_64": {
        "pivot_root": 155, "init_module": 175, "kexec_load": 246, "add_key": 248, "keyctl": 250,
        "perf_event_open": 298, "process_vm_readv": 310, "kcmp": 312, "finit_module": 313, "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "pivot_root": 41, "init_module": 105, "kexec_load": 104, "add_key": 217, "keyctl": 219,
        "perf_event_open": 241, "process_vm_readv": 270, "kcmp": 272, "finit_module": 273, "bpf": 280,
        "userfaultfd": 282,
    },
}.get(platform.machine(), {})
NUMBERS.update(io_uring_setup=425, open_tree=428, fsopen=430, clone3=435, mount_setattr=442)
with open("/agent/facts.json") as file:
    FACTS = json.load(file)


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(name, *arguments):
    """A system call by its name."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(libc.syscall(ctypes.c_long(NUMBERS[name]), *longs))


def call(name, *arguments):
    """A function of libc that sets errno."""
    return checked(getattr(libc, name)(*arguments))


def say(name, got, how, runc):
    line = {"probe": name, "got": bool(got), "how": str(how)[:160], "runc": runc}
    print(json.dumps(line), flush=True)


def clear(group):
    """Ends what a probe has left and collects it: as the first process of a container this one gets all orphans."""
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def probe(name, runc=""):
    """Runs the function below as a probe. `runc` says why it gets nothing even on runc, where it does not."""

    def run(attempt):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.setsid()
            signal.alarm(LIMIT)
            try:
                answer = {"got": attempt() or ""}
            except BaseException as error:  # SystemExit too: nothing may reach the lines below
                where = traceback.extract_tb(error.__traceback__)[-1].line
                answer = {"held": f"{type(error).__name__}: {error} at {where}"}
            os.write(writer, json.dumps(answer).encode()[:60000] + b"\n")
            os._exit(0)
        os.close(writer)
        text = b""
        # Grandchildren may hold the pipe open.
        while not text.endswith(b"\n") and select.select([reader], [], [], LIMIT + 5)[0]:
            part = os.read(reader, 65536)
            text += part
            if not part:
                break
        os.close(reader)
        status = os.waitpid(child, 0)[1]
        clear(child)
        if text:
            answer = json.loads(text)
            say(name, answer.get("got"), answer.get("got") or answer.get("held", "nothing"), runc)
        else:
            say(name, False, f"ended with {status:#x}", runc)
        return attempt

    return run


def twin(name):
    """Runs the function below as work that has to go well: it returns True."""

    def run(work):
        try:
            done, how = work() is True, ""
        except BaseException as error:
            done, how = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"twin": name, "done": done, "how": how}), flush=True)
        return work

    return run


if __name__ == "__main__":
    sys.exit("this is for other programs to import")
