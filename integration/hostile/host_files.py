"""Reads what is the host's: another process's environment, files by links, the host's kernel and hardware."""

import os

from probe import FACTS, probe, twin


def read(path, size=1 << 20):
    with open(path, "rb") as file:
        return file.read(size).decode(errors="replace")


def find(text, fact):
    value = FACTS[fact]
    return f"{fact}: {value}" if value and value in text else ""


@probe("environment of a process of the host", "a pid namespace of its own")
def _():
    return "".join(find(read(f"/proc/{p}/environ"), "secret") for p in os.listdir("/proc") if p.isdigit())


@probe("file of the host by /proc/1/root", "init's root is the container's own")
def _():
    return find(read("/proc/1/root" + FACTS["home"] + "/.env"), "secret")


@probe("file of the host by a link out of the bind", "links are followed inside the container")
def _():
    return find(read("/agent/up/.env"), "secret")


@probe("file of the host by /proc/self/fd", "no folder of the host is open")
def _():
    for number in os.listdir("/proc/self/fd"):
        for way in ("..", "../..", "../../.."):
            try:
                if got := find(read(f"/proc/self/fd/{number}/{way}/.env"), "secret"):
                    return got
            except OSError:
                pass


@probe("folders of the host in the mount table")
def _():
    return find(read("/proc/self/mountinfo"), "folder")


@probe("release of the host's kernel")
def _():
    return find(read("/proc/version"), "release")


@probe("boot id of the host")
def _():
    return find(read("/proc/sys/kernel/random/boot_id"), "boot_id")


@probe("command line of the host's kernel")
def _():
    return find(read("/proc/cmdline"), "command_line")


@probe("symbols of the host's kernel")
def _():
    return [line for line in read("/proc/kallsyms").splitlines() if line.endswith(" _text")]


@probe("memory of the whole host")
def _():
    return find(read("/proc/meminfo"), "memory")


@probe("disks of the host")
def _():
    return [name for name in os.listdir("/sys/block") if name in FACTS["disks"]]


@probe("its cgroup on the host")
def _():
    return find(read("/proc/self/cgroup"), "cgroup")


@twin("its own files, environment and processes")
def _():
    return (
        "PATH=" in read("/proc/self/environ")
        and "Linux" in read("/proc/version")
        and read("/agent/facts.json").startswith("{")
        and len(os.listdir("/usr/bin")) > 10
    )
