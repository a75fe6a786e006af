#!/usr/bin/env python3
"""Draws docs/pictures/layers.svg: what stands between a program and the host.

layers.py         writes the picture
layers.py check   fails if the committed picture is not the one that this would write
"""

import os
import sys
from xml.sax.saxutils import escape

PICTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "layers.svg")
WIDTH, LEFT, COLUMN = 880, 330, 520
# Each row of layers: kind, name, what it does, and width. The program is outermost, the host's kernel last.
LAYERS = [
    [("hostile", "the program", ["Hostile code. As root of its sandbox it has no capability."], COLUMN)],
    [("filter", "seccomp filter of the policy", ["It denies calls before gVisor's code for them runs."], COLUMN)],
    [("gvisor", "gVisor's kernel (the sentry)", ["It answers every call of the program.",
                                              "A process as uid 65534, without", "capabilities, in an empty root."], 285),
     ("gvisor", "gofer", ["It opens files of the", "image and of binds,", "and nothing else."], 215)],
    [("filter", "seccomp filters of the sentry and the gofer", ["Only the calls that gVisor itself needs pass."], COLUMN)],
    [("host", "the host's kernel", ["The last line. A flaw that those calls reach is a flaw here."], COLUMN)],
]
# What decides the request, from above.
REQUEST = [
    ("hostile", "the request", ["An author of a pod,", "or a client of containerd"]),
    ("node", "the policy", ["A file that root alone", "can write"]),
    ("node", "the shim", ["Gives what is in both,", "and reports the rest"]),
]
COLOURS = {"hostile": ("#fde8e6", "#b3372b"), "filter": ("#fff5d6", "#946c00"), "gvisor": ("#e3f1e6", "#2c7a3f"),
           "host": ("#e4ebf5", "#2f5597"), "node": ("#efe9f7", "#6a45a0")}


def text(x, y, words, size=14, weight="normal", colour="#24292f", anchor="start"):
    return (f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
            f'text-anchor="{anchor}">{escape(words)}</text>')


def box(x, y, width, kind, name, lines):
    fill, line = COLOURS[kind]
    height = 34 + 18 * len(lines)
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{line}"/>',
             text(x + 14, y + 22, name, 15, "bold", line)]
    parts += [text(x + 14, y + 42 + 18 * number, words) for number, words in enumerate(lines)]
    return height, parts


def arrow(points):
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="#57606a" stroke-width="1.5" marker-end="url(#head)"/>'


def picture():
    parts, y, middles = [], 60, {}
    for row, layers in enumerate(LAYERS):
        x = LEFT
        for kind, name, lines, width in layers:
            height, drawn = box(x, y, width, kind, name, lines)
            parts += drawn
            middles[name] = y + height // 2
            if row + 1 < len(LAYERS):
                parts.append(arrow([(x + width // 2, y + height), (x + width // 2, y + height + 19)]))
            x += width + 20
        y += height + 22
    left, right = LEFT + LAYERS[2][0][3], LEFT + LAYERS[2][0][3] + 18
    parts.append(arrow([(left, middles["gofer"]), (right, middles["gofer"])]))
    bottom = y
    y = 60
    for number, (kind, name, lines) in enumerate(REQUEST):
        height, drawn = box(30, y, 210, kind, name, lines)
        parts += drawn
        if number + 1 < len(REQUEST):
            parts.append(arrow([(135, y + height), (135, y + height + 27)]))
        else:
            # The shim sets the filter and starts the sandbox.
            for target in ("seccomp filter of the policy", "gVisor's kernel (the sentry)"):
                parts.append(arrow([(240, y + height // 2), (285, y + height // 2), (285, middles[target]), (LEFT - 3, middles[target])]))
        y += height + 30
    head = [text(30, 36, "What may it have?", 16, "bold"), text(LEFT, 36, "What stands between the program and the host?", 16, "bold")]
    title = "What stands between a program in a sandbox and the host"
    described = "; ".join(f"{name}: {' '.join(lines)}" for row in LAYERS for _, name, lines, _ in row)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" width="{WIDTH}" height="{bottom}" '
        'font-family="sans-serif" role="img">',
        "<!-- Drawn by docs/pictures/layers.py. Change that, and run it. -->",
        f"<title>{escape(title)}</title>", f"<desc>{escape(described)}</desc>",
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{bottom}" rx="8" fill="#ffffff"/>', *head, *parts, "</svg>", ""])


def main():
    if sys.argv[1:] == ["check"]:
        with open(PICTURE) as file:
            if file.read() != picture():
                sys.exit("docs/pictures/layers.svg is not what docs/pictures/layers.py draws: run that")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        with open(PICTURE, "w") as file:
            file.write(picture())


if __name__ == "__main__":
    main()
