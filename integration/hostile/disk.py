"""Fills what can be written, until more is written than any place may take."""

import os

from probe import probe, twin

ENOUGH = 200 << 20
SIZED = "containerd gives this tmpfs a size"


def fill(folder):
    path = os.path.join(folder, "fill")
    block, written = os.urandom(1 << 20), 0
    with open(path, "wb", buffering=0) as file:
        try:
            while written < ENOUGH:
                written += file.write(block)
        finally:
            os.unlink(path)
    return f"{written >> 20} MiB"


for place, reason in (
    ("/", ""), ("/var/tmp", ""), ("/home/agent", ""),
    ("/tmp", SIZED), ("/run", SIZED), ("/dev/shm", SIZED), ("/dev", SIZED), ("/dev/mqueue", "no data in it"),
):  # fmt: skip
    probe(f"fill {place}", reason)(lambda: fill(place))


@twin("10 MiB in /tmp, read back")
def _():
    data = os.urandom(10 << 20)
    with open("/tmp/data", "wb") as file:
        file.write(data)
    with open("/tmp/data", "rb") as file:
        return file.read() == data
