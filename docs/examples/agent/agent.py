#!/usr/bin/env python3
"""Runs the steps of an agent in one jailed container and prints what came of each.

    agent.py [--image IMAGE] [--seconds N] [--runtime NAME] STEP.py…
"""

import argparse
import collections
import contextlib
import os
import secrets
import sys
import threading
import time
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired, run

# A warning of containerd's would look like something that a step has said.
os.environ["CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS"] = "true"
SCRATCH = "/work"
MIB = 1 << 20
# It inherits what steps leave behind. As it ignores SIGCHLD, the dead do not stay: they would count as tasks.
FIRST = """from signal import *
signal(SIGCHLD, SIG_IGN)
while True: pause()"""


class Gone(Exception):
    """The sandbox has ended, with all that was in it. A new one is a new Jail."""


def ctr(*words):
    """One command of containerd's client; CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE say whose."""
    return run(["ctr", *words], stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True, timeout=90)


Result = collections.namedtuple("Result", "code stdout stderr stopped seconds")


class Jail:
    """A sandbox of one container: no network, everything read-only but a scratch of a fixed size, which is memory of the
    sandbox and ends with it. Nothing of the host is in there."""

    def __init__(self, image, runtime, memory_mib=512, cpus=1.0, scratch_mib=64):
        self.id = f"agent-{secrets.token_hex(4)}"
        self.steps = 0
        self.words = [
            "run", "--detach", "--null-io", "--runtime", runtime, "--read-only",
            "--memory-limit", str(memory_mib * MIB), "--cpus", str(cpus),
            "--mount", f"type=tmpfs,src=scratch,dst={SCRATCH},options=nosuid:nodev:size={scratch_mib}m",
            "--env", f"HOME={SCRATCH}", "--env", f"TMPDIR={SCRATCH}", "--cwd", SCRATCH,
            image, self.id, "python3", "-c", FIRST,
        ]  # fmt: skip

    def __enter__(self):
        started = ctr(*self.words)
        if started.returncode != 0:
            self.__exit__()
            sys.exit(f"the sandbox did not start: {started.stderr}")
        return self

    def __exit__(self, *_):
        # Ends with the task's own code, which is that of SIGKILL.
        ctr("task", "rm", "--force", self.id)
        ctr("container", "rm", self.id)

    def run(self, *argv, stdin=b"", seconds=10, most=64 << 10):
        """Runs a program by exec. It is stopped after so many seconds, or when it prints more than `most` bytes: what a
        step says is hostile too, and an exec's output has no other bound."""
        self.steps += 1
        name, began, stopped = f"step-{self.steps}", time.monotonic(), []

        def stop(why):
            stopped.append(why)
            ctr("task", "kill", "--exec-id", name, "--signal", "SIGKILL", self.id)
            # What it left in the background: all but the sandbox's first process.
            ctr("task", "exec", "--exec-id", f"{name}-sweep", self.id, "sh", "-c", "kill -9 -1")

        def collect(stream, into):
            into.append(stream.read(most + 1))
            if len(into[0]) > most:
                stop(f"it printed more than {most} bytes")
            while stream.read(MIB):
                pass

        command = ["ctr", "task", "exec", "--exec-id", name, "--cwd", SCRATCH, self.id, *argv]
        process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        output, errors = [], []
        pairs = (process.stdout, output), (process.stderr, errors)
        readers = [threading.Thread(target=collect, args=pair, daemon=True) for pair in pairs]
        alarm = threading.Timer(seconds, stop, [f"it ran longer than {seconds} s"])
        for thread in [*readers, alarm]:
            thread.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        try:
            # Far longer than it takes to stop a step: beyond that only the end of the sandbox helps.
            code = process.wait(seconds + 60)
        except TimeoutExpired:
            process.kill()
            raise Gone(f"{name} could not be stopped") from None
        finally:
            alarm.cancel()
        for reader in readers:
            reader.join()
        # Killed, and not by us: the whole sandbox ends with it, but that takes a moment.
        if not stopped and (code == 137 or code != 0 and not self.is_running()):
            raise Gone(f"the sandbox ended during {name}: out of memory, most likely")
        text = [content[0][:most].decode(errors="replace") for content in (output, errors)]
        return Result(code, *text, "; ".join(stopped), time.monotonic() - began)

    def is_running(self):
        tasks = [line.split() for line in ctr("task", "ls").stdout.splitlines()]
        return any(task[0] == self.id and task[-1] == "RUNNING" for task in tasks)

    def read(self, path):
        """A file of the scratch. It is opened in there: a link in its place leads to nothing of the host's."""
        return self.run("cat", "--", path, most=MIB)


def show(title, result):
    stopped = f", stopped: {result.stopped}" if result.stopped else ""
    print(f"== {title}: exit code {result.code} after {result.seconds:.1f} s{stopped}")
    for line in (result.stdout + result.stderr).splitlines():
        print(f"   {line}")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="docker.io/library/python:3")
    parser.add_argument("--runtime", default="io.containerd.bulkhead.v1")
    parser.add_argument("--seconds", type=float, default=10, help="what a step may take")
    parser.add_argument("steps", nargs="+", metavar="STEP.py")
    given = parser.parse_args()
    try:
        with Jail(given.image, given.runtime) as jail:
            for path in given.steps:
                with open(path, "rb") as file:
                    # The text of the step is its program's stdin: no file, no quoting.
                    result = jail.run("python3", "-", stdin=file.read(), seconds=given.seconds)
                show(path, result)
            show("the scratch", jail.run("ls", "-l", "."))
            show("result.json", jail.read("result.json"))
    except Gone as gone:
        sys.exit(f"== {gone}")


if __name__ == "__main__":
    main()
