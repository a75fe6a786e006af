"""Runs one hostile answer in three ways and prints what each way gave away.

Every number is counted here, outside of the program that is judged: by the listener, by looking
for the planted secrets in the program's output, by looking for its files on the host.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time

from listener import Listener

SOURCE = os.path.dirname(os.path.abspath(__file__))
TESTBED = os.environ["BULKHEAD_TESTBED"]
HOME = os.path.join(TESTBED, "home")
AGENT = os.path.join(HOME, "agent")
NAME = "demo"
BUNDLE_ROOT = f"{TESTBED}/state/io.containerd.runtime.v2.task/default/{NAME}/rootfs"
IMAGE = "bulkhead.test/python:latest"
# Bulkhead gives a program these to write to; they are memory of the sandbox and end with it.
SCRATCH = {"/tmp", "/run", "/dev/shm"}
PATIENCE = 90

MARK = "planted-" + secrets.token_hex(4)
SECRETS = {
    kind: f"{MARK}-{kind}-{secrets.token_hex(8)}"
    for kind in ("folder", "home", "environment", "metadata")
}


def ctr_run(runtime):
    return [
        "ctr", "run", "--rm", "--cni", "--runtime", runtime,
        "--mount", f"type=bind,src={AGENT},dst=/agent,options=rbind:rw", "--cwd", "/agent",
        IMAGE, NAME, "python3", "host.py",
    ]  # fmt: skip


def host_kernel_log():
    return set(subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines())


def plant(port, token):
    """A host's home with a secret of its own, and in it the folder that the agent works in."""
    shutil.rmtree(HOME, ignore_errors=True)
    os.makedirs(AGENT)
    for name in ("host.py", "answer.py", "loot.py"):
        shutil.copy(os.path.join(SOURCE, name), AGENT)
    for folder, kind in ((AGENT, "folder"), (HOME, "home")):
        with open(os.path.join(folder, ".env"), "w") as file:
            file.write(f"API_KEY={SECRETS[kind]}\n")
    os.symlink("..", os.path.join(AGENT, "up"))
    target = {"home": HOME, "mark": MARK, "port": port, "token": token}
    with open(os.path.join(AGENT, "target.json"), "w") as file:
        json.dump(target, file)


def roots_seen_from_outside(process, containers):
    """Where files that the program made would be on this machine."""
    if not containers:
        return [f"/proc/{process.pid}/root"]
    listed = subprocess.run(["ctr", "task", "ls"], capture_output=True, text=True).stdout
    pids = [line.split()[1] for line in listed.splitlines() if line.split()[0] == NAME]
    return [BUNDLE_ROOT] + [f"/proc/{pid}/root" for pid in pids]


def on_host(folder, token, roots, container):
    """Is the file that the program wrote into a folder there, with its content, from outside?"""
    if folder == container:
        candidates = [os.path.join(AGENT, token)]
    else:
        candidates = [root + os.path.join(folder, token) for root in roots]
    for path in candidates:
        try:
            with open(path) as file:
                if file.read() == token:
                    return True
        except OSError:
            pass
    return False


class Leg:
    """One run of the hostile answer, and what was measured of it."""

    def __init__(self, title, command, listener, folder, container):
        self.title = title
        token = "written-" + secrets.token_hex(6)
        plant(listener.port, token)
        listener.start_over()
        host_log = host_kernel_log()
        environment = {**os.environ, "API_KEY": SECRETS["environment"]}
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip
        # Whatever hangs, hangs for this long only.
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        self.seconds = time.monotonic() - started
        if line:
            report = json.loads(line)
            roots = roots_seen_from_outside(process, container)
            self.tried = report["tried"]
            self.written = report["written"]
            self.found = [f for f in self.tried if on_host(f, token, roots, folder)]
            self.kernel = report["kernel"]
            self.log = sum(entry in host_log for entry in strip(report["log"]))
            text = "\n".join(report["secrets"])
            self.secrets = {kind for kind, value in SECRETS.items() if value in text}
        _, errors = process.communicate("\n")
        watchdog.cancel()
        if not line or process.returncode != 0:
            sys.exit(f"{title}: the program did not come to its end "
                     f"(exit code {process.returncode}):\n{errors}")  # fmt: skip
        # After the program's end, so that nothing it sent is still on its way.
        self.received = dict(listener.received)
        self.outside = [f for f in self.written if f not in SCRATCH and f != folder]
        self.found_outside = [f for f in self.found if f != folder]
        print(f"   the program escaped and was through after {self.seconds:.1f} s", flush=True)

    def bytes(self):
        return sum(self.received.values())


def strip(log):
    """Kernel log lines as dmesg prints them: without the level."""
    return [line.partition(">")[2] if line.startswith("<") else line for line in log]


def table(legs):
    def row(text, value):
        print(f"  {text:<44}" + "".join(f"{value(leg):<18}" for leg in legs).rstrip())

    def got(kind):
        return lambda leg: "READ" if kind in leg.secrets else "no"

    print()
    row("", lambda leg: leg.title)
    print("Secrets in the program's hands")
    row(".env in the folder that was bound in", got("folder"))
    row(".env of the host, outside that folder", got("home"))
    row("API key in the host process's environment", got("environment"))
    row("credentials from 169.254.169.254", got("metadata"))
    print("Bytes that reached the listener")
    row("in all", Leg.bytes)
    for way in sorted({way for leg in legs for way in leg.received}):
        row(f"by {way}", lambda leg, way=way: leg.received.get(way, 0))
    print(f"Places it wrote to, of {len(legs[0].tried)} tried")
    row("in all", lambda leg: len(leg.written))
    row("outside scratch and the bound folder", lambda leg: len(leg.outside))
    row("found from the host, bound folder aside", lambda leg: len(leg.found_outside))
    print("The host's kernel")
    row("release it was told", lambda leg: leg.kernel)
    row("lines of the host's kernel log it read", lambda leg: leg.log)


def verdict(attacks, defence):
    faults = []
    for leg in attacks:
        if not (leg.bytes() and leg.secrets and leg.outside):
            faults.append(f"{leg.title} gave nothing away, so the attack shows nothing")
    # The folder is the one thing that the request itself handed over.
    if "folder" not in defence.secrets:
        faults.append("on Bulkhead the program could not read the folder bound in for it")
    if beyond := sorted(defence.secrets - {"folder"}):
        faults.append(f"Bulkhead gave away: {', '.join(beyond)}")
    if defence.bytes():
        faults.append(f"{defence.bytes()} bytes left Bulkhead")
    if defence.outside or defence.found_outside:
        faults.append(f"written on Bulkhead: {defence.outside}, on the host: {defence.found_outside}")
    if defence.log or defence.kernel == os.uname().release:
        faults.append("Bulkhead showed the host's kernel")
    return faults


def main():
    listener = Listener(SECRETS["metadata"])
    print("== 1. A container in gVisor: ctr run --rm --runtime io.containerd.bulkhead.v1 "
          "bulkhead.test/busybox:latest hello dmesg", flush=True)  # fmt: skip
    hello = subprocess.run(
        ["timeout", str(PATIENCE), "ctr", "run", "--rm", "--runtime", "io.containerd.bulkhead.v1",
         "bulkhead.test/busybox:latest", "hello", "dmesg"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    print("".join(f"   {line}\n" for line in hello.stdout.splitlines()[:3]), end="", flush=True)
    if hello.returncode != 0 or "gVisor" not in hello.stdout:
        sys.exit(f"dmesg shows no gVisor (exit code {hello.returncode}):\n{hello.stderr}")

    print("== 2. The hostile answer (integration/demo/answer.py) as a plain process", flush=True)
    layer = os.path.join(TESTBED, "layer")
    plain = Leg("plain process", ["unshare", "--mount", os.path.join(SOURCE, "plain.sh"), layer,
                AGENT], listener, AGENT, False)  # fmt: skip
    print("== 3. On runc, and 4. on Bulkhead, with one request:", flush=True)
    print("   " + " ".join(ctr_run("RUNTIME")), flush=True)
    runc = Leg("runc", ctr_run("io.containerd.runc.v2"), listener, "/agent", True)
    bulkhead = Leg("Bulkhead", ctr_run("io.containerd.bulkhead.v1"), listener, "/agent", True)

    table([plain, runc, bulkhead])
    print("""
The folder was bound in by root for the program to work in, so on Bulkhead too it is read and
written; what is read there stays there. All three run as root, in the testbed's own network, where
169.254.169.254 is the listener; a plain process's writes go to a layer that is thrown away.""")
    if faults := verdict([plain, runc], bulkhead):
        sys.exit("FAILED: " + "; ".join(faults))
    print("Bulkhead held: nothing was sent, and no file read or written outside the bound folder.")


main()
