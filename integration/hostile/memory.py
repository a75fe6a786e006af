"""Takes memory until the machine has no more, or more than a sandbox may have."""

from probe import probe, twin


@twin("200 MiB held")
def _():
    held = bytearray(200 << 20)
    held[:: 4096] = b"x" * len(held[:: 4096])
    return held.count(b"x") == len(held) // 4096


@probe("1 GiB held")
def _():
    held = []
    for _ in range(64):
        part = bytearray(16 << 20)
        part[:: 4096] = b"x" * len(part[:: 4096])
        held.append(part)
    return f"{len(held) * 16} MiB"
