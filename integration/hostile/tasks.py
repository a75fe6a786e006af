"""Makes processes and threads without end."""

import os
import signal
import threading
import time

from probe import probe, twin

ENOUGH = 600


def bomb(script, enough=ENOUGH):
    """Shells until it fails, or there are enough; each waits for a FIFO that nobody opens."""
    if not os.path.exists("/tmp/gate"):
        os.mkfifo("/tmp/gate")
    children = []
    try:
        while len(children) < enough:
            arguments = ["sh", "-c", script, str(len(children) % 50)]
            children.append(os.posix_spawn("/bin/sh", arguments, os.environ))
    except OSError as error:
        failure = error
    time.sleep(1)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    if len(children) < enough:
        raise OSError(failure.errno, f"{failure.strerror} after {len(children)}")
    return f"{len(children)} processes"


@probe("fork bomb")
def _():
    return bomb("read line </tmp/gate")


@probe("fork bomb that reads and writes files")
def _():
    # With what the shell has itself, so each is one process; and not without end: they take the CPU from what makes them.
    return bomb(
        "i=0; while [ $i -lt 20 ]; do while read -r l; do echo $l; done </etc/passwd >/tmp/$0; i=$((i+1)); done;"
        "read line </tmp/gate",
        300,
    )


@probe("thread bomb")
def _():
    threading.stack_size(65536)
    end = threading.Event()
    threads = []
    try:
        while len(threads) < ENOUGH:
            thread = threading.Thread(target=end.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    end.set()
    return len(threads) >= ENOUGH and f"{len(threads)} threads"


@twin("100 processes, then 100 threads")
def _():
    # All of them are there at once: they wait for the end of a pipe.
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    children = []
    for number in range(100):
        arguments = ["sh", "-c", f"read line <&{reader}; exit {number % 7}"]
        children.append(os.posix_spawn("/bin/sh", arguments, os.environ))
    os.close(writer)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    done = []
    threads = [threading.Thread(target=done.append, args=(n,)) for n in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes == [n % 7 for n in range(100)] and sorted(done) == list(range(100))
