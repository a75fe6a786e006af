"""Runs as a user, and wants to be root."""

import os
import subprocess

from probe import probe, twin


@probe("a set-uid program of the image")
def _():
    answer = subprocess.run(["/opt/set-uid-id", "-u"], capture_output=True, text=True, check=True)
    return answer.stdout.strip() == "0" and "uid 0"


@probe("a program with file capabilities")
def _():
    status = subprocess.run(["/opt/capable", "/proc/self/status"], capture_output=True, text=True, check=True)
    effective = next(line for line in status.stdout.splitlines() if line.startswith("CapEff"))
    return int(effective.split()[1], 16) and effective


@probe("another user", "needs a capability")
def _():
    os.setresuid(0, 0, 0)
    return "uid 0"


@probe("another group", "needs a capability")
def _():
    os.setgroups([0])
    return "gid 0"


@twin("its own user, group and home")
def _():
    return os.getuid() == 1000 and os.getgid() == 1000 and os.path.isdir("/home/agent")
