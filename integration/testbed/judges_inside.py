"""What runs inside of a container for `make judges`: JUDGE LIMIT [NAMES…]. Each case is a process of its own, with a time limit, and has one
line: the judge, the name, and how it ended. A case that ends otherwise than well also says its last words.
"""

import os
import signal
import subprocess
import sys

# stress-ng(1), EXIT STATUS. What it cannot do for want of something is no failure of its own.
STRESS_NG = {0: "passed", 3: "skipped", 4: "skipped"}
CLASSES = ("cpu", "cpu-cache", "device", "filesystem", "interrupt", "io", "memory", "network", "os", "pipe", "scheduler", "security", "vm")


def run(command, limit):
    """The exit code, none where it took too long, and what it said."""
    process = subprocess.Popen(command, cwd="/tmp", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        # Of what it has left, too.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def stressors():
    found = set()
    for name in CLASSES:
        said = subprocess.run(["stress-ng", "--class", f"{name}?"], capture_output=True, text=True, check=False)
        found.update((said.stdout + said.stderr).partition(":")[2].split())
    return sorted(found)


def stress(name, limit):
    code, said = run(["stress-ng", f"--{name}", "1", "--timeout", "1s", "--temp-path", "/tmp"], limit)
    return "hung" if code is None else STRESS_NG.get(code, "failed"), said


def modules():
    folder = "/usr/lib/python3.11/test"
    found = {name.removesuffix(".py") for name in os.listdir(folder) if name.startswith("test_")}
    return sorted(name for name in found if "." not in name)


def cpython(name, limit):
    code, said = run(["python3", "-m", "test", name], limit)
    if code is None:
        return "hung", said
    if code == 0:
        return "skipped" if "1 test skipped" in said or f"{name} skipped" in said else "passed", said
    return "failed", said


def main():
    judge, limit, only = sys.argv[1], int(sys.argv[2]), set(sys.argv[3:])
    names, one = {"stress-ng": (stressors, stress), "cpython": (modules, cpython)}[judge]
    for name in names():
        if only and name not in only:
            continue
        outcome, said = one(name, limit)
        print(judge, name, outcome, flush=True)
        if outcome == "failed":
            for line in said.splitlines()[-30:]:
                print("  |", line[:200], flush=True)


main()
