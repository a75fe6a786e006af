#!/usr/bin/env python3
"""docs/evidence.md: how the suites that CI leaves out, or cuts, ended when they last ran whole.

evidence.py run TARGET [NAME=VALUE…]   runs `make TARGET` on a clean checkout and writes its row
evidence.py check                      the record, the plan in integration/README.md and .ci/run agree
"""

import os
import re
import subprocess
import sys
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RECORD = "docs/evidence.md"
PLAN = "integration/README.md"
HEAD = "| target | date (UTC) | commit | took | with | outcome |"


def read(name):
    with open(os.path.join(REPOSITORY, name)) as file:
        return file.read()


def said(*command):
    """What a command prints, empty if it cannot."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def rows(text, head):
    """The rows of the table that begins with `head`, each a list of cells."""
    found = []
    lines = iter(text.splitlines())
    for line in lines:
        if line == head:
            next(lines)
            break
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def versions():
    """What the outcome depends on beside the commit."""
    tools = os.path.join(REPOSITORY, "target", "tools", "bin")
    containerd = said(os.path.join(tools, "containerd"), "--version").split()
    runsc = re.search(r"release-(\d+)", said(os.path.join(tools, "runsc"), "--version"))
    found = [f"containerd {containerd[2].lstrip('v')}" if len(containerd) > 2 else "",
             f"runsc {runsc[1]}" if runsc else "",
             f"kernel {'.'.join(os.uname().release.split('.')[:2])}", f"{os.cpu_count()} cores"]
    return ", ".join(part for part in found if part)


def run(target, variables):
    """Runs the target, shows what it prints, and writes the row."""
    # The record itself may have changed: another row was written before.
    changed = [line for line in said("git", "status", "--porcelain").splitlines() if not line.endswith(RECORD)]
    if changed:
        sys.exit("error: a row names the commit that ran, and this checkout has changes:\n" + "\n".join(changed))
    commit = said("git", "rev-parse", "--short=10", "HEAD")
    log = os.path.join(REPOSITORY, "target", "logs", f"evidence-{target}.log")
    os.makedirs(os.path.dirname(log), exist_ok=True)
    start, last = time.monotonic(), ""
    environment = {**os.environ, **dict(variable.split("=", 1) for variable in variables)}
    with open(log, "w") as kept:
        process = subprocess.Popen(["make", "--no-print-directory", target], cwd=REPOSITORY, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            kept.write(line)
            # make's own word for a failure is not the suite's.
            if line.strip() and not line.startswith("make"):
                last = line.strip()
    status = process.wait()
    if said("git", "rev-parse", "--short=10", "HEAD") != commit:
        sys.exit("error: another commit was checked out while this one ran; nothing is recorded")
    took = round((time.monotonic() - start) / 60)
    outcome = ("" if status == 0 else f"FAILED (status {status}): ") + last.replace("|", "/")
    if variables:
        outcome += f" ({' '.join(variables)})"
    write([target, time.strftime("%Y-%m-%d", time.gmtime()), commit, f"{took} min", versions(), outcome])
    print(f"{RECORD}: {target} at {commit}: {outcome}")
    sys.exit(status)


def write(row):
    """Puts the row in the place of the target's last one, or at the end."""
    text = read(RECORD)
    line = "| " + " | ".join(row) + " |"
    pattern = re.compile(rf"^\| {re.escape(row[0])} \|.*$", re.MULTILINE)
    if pattern.search(text):
        text = pattern.sub(lambda _: line, text, count=1)
    else:
        last = [found for found in re.finditer(r"^\|.*$", text, re.MULTILINE)][-1]
        text = text[: last.end()] + "\n" + line + text[last.end():]
    path = os.path.join(REPOSITORY, RECORD)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def check():
    """A suite that nobody runs is found here, and so is a record of a commit that never was."""
    faults = []
    in_ci = re.search(r"^for target in (.*?); do", read(".ci/run"), re.MULTILINE)[1].split()
    plan = {cells[0].strip("`").removeprefix("make "): cells[1] for cells in rows(read(PLAN), "| target | runs in | cold | warm |")}
    record = {cells[0]: cells for cells in rows(read(RECORD), HEAD)}
    targets = re.findall(r"^([a-z0-9-]+):.*## ", read("Makefile"), re.MULTILINE)
    for target in targets:
        # `make check` is a part of `make lint` and `make test`, `make release` packs what `make deb` has built, and `make lint`
        # holds what `make map` draws against the code.
        if target in ("help", "check", "map", "release", "testbed", "testbed-down", "evidence", "clean"):
            continue
        if target not in plan:
            faults.append(f"{PLAN}: the plan has no row for make {target}")
        elif plan[target].startswith("CI") != (target in in_ci):
            faults.append(f"{PLAN}: make {target} runs in {plan[target]}, and .ci/run says otherwise")
        elif plan[target] != "CI" and target not in record:
            faults.append(f"{RECORD}: no whole run of make {target}, which CI leaves out or cuts, is on record")
    for target, cells in record.items():
        if target not in targets:
            faults.append(f"{RECORD}: there is no make {target}")
        if plan.get(target) == "CI":
            faults.append(f"{RECORD}: make {target} runs whole in CI, which is its record")
        # A checkout without history cannot say.
        if said("git", "rev-parse", "--is-shallow-repository") == "false" and \
                not said("git", "rev-parse", "--verify", "--quiet", f"{cells[2]}^{{commit}}"):
            faults.append(f"{RECORD}: make {target} ran at {cells[2]}, which is no commit of this history")
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"] and len(sys.argv) > 2:
        run(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:] == ["check"]:
        check()
    else:
        sys.exit(__doc__)
