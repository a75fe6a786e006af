#!/usr/bin/env python3
"""house.py walls [all] | map [--check]: the rooms of the code and their imports, read from the sources.

`walls` names each file that breaks a rule of the house (docs/architecture.md, "Rooms"), `walls all` also what is not held yet: wall 4,
circles of files, floors with too many files, files that are too long. `map` draws docs/pictures/map.svg and the
table of rooms in docs/architecture.md; with --check it fails where they differ from the code.
"""

import html
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CRATES = {
    "runsc_config": "runsc-config/src",
    "node": "shim/node/src",
    "shim": "shim/src",
    "tool": "shim/tool/src",
    "integration": "integration/src",
}
# What a path outside of its crate begins with.
LIBRARIES = ("runsc_config", "node", "integration")

# Wall 1: what may name containerd's messages and ttrpc. `api` makes plain requests of messages and back, `serving` accepts
# connections, and `startup` reads the bootstrap and answers it.
EDGE = ("shim/src/api/", "shim/src/serving/", "shim/src/startup/")
WIRE = re.compile(r"\b(containerd_shim_protos|containerd_shim|ttrpc)::")
# The flags of `main`, which are parsed by the same library.
WIRE_EXCEPT = ("shim/src/main.rs",)
# Wall 2: rooms that name no metrics. What they count is a value that they are handed.
UNCOUNTED = ("shim/src/error.rs", "shim/src/io/", "shim/src/runsc/", "shim/src/sandbox/", "shim/src/sys/", "shim/src/task/")
METRICS = re.compile(r"\bcrate::metrics\b|\bCOUNTERS\b")
# Wall 3: a gRPC code is chosen here alone.
CODES = ("shim/src/api/",)
CODE = re.compile(r"\bCode::[A-Z]\w+")
# Wall 4: the policy opens nothing and asks the host nothing by itself.
PURE = "runsc-config/src/"
HOST = re.compile(
    r"\bstd::(fs|env|net|process)\b|\bFile::|\b(nix|rustix|tokio)::|\blibc::[a-z]|"
    r"\.(exists|is_file|is_dir|metadata|symlink_metadata|canonicalize|read_dir|read_link|try_exists)\(\)"
)
# Wall 5: names of the node that are written once, in code that is no test. Each is a quoted text.
ONCE = ("bulkhead.json", "config.asked.json", "bulkhead-root", "shim.pid", "/run/bulkhead", "/etc/bulkhead", "metrics.sock",
        "install.json", "gvisor-bin")
# Wall 6: clippy refuses these on the loop; the list itself must not shrink.
LOOP = ("std::os::unix::net::UnixStream::connect",)

# What `make lint` holds by now.
HELD = ("wall 1:", "wall 2:", "wall 3:", "wall 5:", "wall 6:")

LOOSE = 12  # files of a floor
LINES = 400  # of a file, without its unit tests
LONG = re.compile(r"^//! (Long|Over 400 lines)[: ]", re.MULTILINE)


class Source:
    """A file of a crate, without comments and unit tests."""

    def __init__(self, crate, path, module):
        self.crate, self.path, self.module = crate, path, module
        self.text = (REPO / path).read_text()
        kept = re.split(r"^#\[cfg\(test\)\]\n(?:#\[[^\n]*\]\n)*mod \w+ \{", self.text, maxsplit=1, flags=re.MULTILINE)[0]
        self.lines = kept.count("\n")
        # Lines keep their numbers.
        kept = re.sub(r"^#\[cfg\(test\)\]\n(?:#\[[^\n]*\]\n)*[^\n]*;\n", lambda all: "\n" * all[0].count("\n"), kept, flags=re.MULTILINE)
        self.code = re.sub(r"(?<![:\"])//[^\n]*", "", kept)

    @property
    def room(self):
        return "/".join(self.module[:-1]) if not self.path.endswith("/mod.rs") else "/".join(self.module)

    def numbered(self, pattern):
        for number, line in enumerate(self.code.split("\n"), 1):
            found = pattern.search(line)
            if found:
                yield number, found.group(0)


def is_test(path):
    parts = Path(path).parts
    return parts[-1] in ("tests.rs", "testing.rs") or "tests" in parts[:-1]


def sources():
    """Every file of the crates that is no test, by crate and module."""
    every = {}
    for crate, root in CRATES.items():
        for path in sorted((REPO / root).rglob("*.rs")):
            parts = list(path.relative_to(REPO / root).with_suffix("").parts)
            if parts[-1] in ("mod", "lib", "main"):
                parts.pop()
            name = str(path.relative_to(REPO))
            if not is_test(name):
                every[crate, tuple(parts)] = Source(crate, name, tuple(parts))
    return every


def split_group(text):
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [part.strip() for part in [*parts, part] if part.strip()]


def expand(path):
    """The single paths of a use tree."""
    head, brace, rest = path.partition("{")
    if not brace:
        yield path.split(" as ")[0].strip()
        return
    for part in split_group(rest.rsplit("}", 1)[0]):
        yield from expand(head + part)


USE = re.compile(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);")
INLINE = re.compile(r"(?<![\w:])((?:crate|super|self|" + "|".join(LIBRARIES) + r")(?:::\w+)+)")


class House:
    """The files with what each imports."""

    def __init__(self):
        self.files = sources()
        self.exports = {}  # (crate, module) -> {name: path}
        self.arrows = {}
        for key, source in self.files.items():
            for public, tree in USE.findall(source.code):
                if public:
                    for path in expand(re.sub(r"\s+", " ", tree)):
                        self.exports.setdefault(key, {})[path.split("::")[-1]] = path
        for key, source in self.files.items():
            self.arrows[key] = {to for to in self.imports(key, source) if to and to != key}

    def imports(self, key, source):
        crate, module = key
        children = set(re.findall(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod (\w+);", source.code, flags=re.MULTILINE))
        for public, tree in USE.findall(source.code):
            for path in expand(re.sub(r"\s+", " ", tree)):
                # What a room only hands on is no use of its own.
                if not public:
                    yield self.target(crate, module, path, children)
        rest = USE.sub("", source.code)
        for path in INLINE.findall(rest):
            yield self.target(crate, module, path, children)
        for child in children:
            for path in re.findall(rf"(?<![\w:]){child}::\w+", rest):
                yield self.target(crate, module, path, children)

    def target(self, crate, module, path, children, depth=0):
        """The file that has what a path names."""
        parts = path.split("::")
        if parts[0] == "crate":
            here, parts = (), parts[1:]
        elif parts[0] == "super":
            here = module
            while parts and parts[0] == "super":
                here, parts = here[:-1], parts[1:]
        elif parts[0] == "self":
            here, parts = module, parts[1:]
        elif parts[0] in children:
            here = module
        elif parts[0] in LIBRARIES and parts[0] != crate:
            crate, here, parts = parts[0], (), parts[1:]
        else:
            return None
        while parts and (crate, (*here, parts[0])) in self.files:
            here, parts = (*here, parts[0]), parts[1:]
        if parts and depth < 8:
            onward = self.exports.get((crate, here), {}).get(parts[0])
            if onward:
                source = self.files.get((crate, here))
                below = set(re.findall(r"mod (\w+);", source.code)) if source else set()
                return self.target(crate, here, onward, below, depth + 1) or (crate, here)
        return (crate, here) if (crate, here) in self.files else None

    def circles(self):
        """Files that import each other, by crate: strongly connected parts of more than one."""
        index, low, stack, found, counter = {}, {}, [], [], [0]

        def visit(key):
            index[key] = low[key] = counter[0]
            counter[0] += 1
            stack.append(key)
            for to in self.arrows[key]:
                if to not in index:
                    visit(to)
                    low[key] = min(low[key], low[to])
                elif to in stack:
                    low[key] = min(low[key], index[to])
            if low[key] == index[key]:
                part = []
                while True:
                    part.append(stack.pop())
                    if part[-1] == key:
                        break
                if len(part) > 1:
                    found.append(sorted(part))

        sys.setrecursionlimit(10_000)
        for key in self.files:
            if key not in index:
                visit(key)
        return found


def walls(house):
    broken = []

    def breaks(wall, path, what):
        broken.append(f"wall {wall}: {path}: {what}")

    for source in house.files.values():
        path = source.path
        ours = path.startswith("shim/")
        if ours and not path.startswith((*EDGE, *WIRE_EXCEPT)):
            for number, found in source.numbered(WIRE):
                breaks(1, f"{path}:{number}", f"{found.rstrip(':')} is named outside of the edge")
        if path.startswith(UNCOUNTED):
            for number, found in source.numbered(METRICS):
                breaks(2, f"{path}:{number}", f"{found}: a counter is a value handed in")
        if path.startswith("shim/src/") and not path.startswith(CODES):
            for number, found in source.numbered(CODE):
                breaks(3, f"{path}:{number}", f"{found}: gRPC codes are chosen in {CODES[0]}")
        if path.startswith(PURE):
            for number, found in source.numbered(HOST):
                breaks(4, f"{path}:{number}", f"{found}: the policy asks the host nothing by itself")
        for number, _ in source.numbered(re.compile(r"#\[path")):
            breaks(5, f"{path}:{number}", "#[path]: two programs share a library")
        if source.lines > LINES and not LONG.search(source.text):
            breaks("floors", path, f"{source.lines} lines, more than {LINES}, and no line that says why (`//! Long: …`)")
    for text in ONCE:
        places = [f"{source.path}:{number}" for source in house.files.values() if source.path.startswith(("shim/", PURE))
                  for number, _ in source.numbered(re.compile(f'"{re.escape(text)}"'))]
        if len(places) > 1:
            breaks(5, ", ".join(places), f"{text!r} is written {len(places)} times")
    clippy = (REPO / "shim/clippy.toml").read_text()
    for method in LOOP:
        if method not in clippy:
            breaks(6, "shim/clippy.toml", f"{method} is not among the disallowed methods")
    for circle in house.circles():
        breaks("circles", " ".join(house.files[key].path for key in circle), "import each other")
    floors = {}
    for root in (*CRATES.values(), "integration/tests"):
        for path in (REPO / root).rglob("*.rs"):
            floors.setdefault(path.parent.relative_to(REPO), []).append(path.name)
    for floor, names in sorted(floors.items()):
        loose = [name for name in names if name not in ("mod.rs", "lib.rs", "main.rs", "tests.rs")]
        if len(loose) > LOOSE:
            breaks("floors", floor, f"{len(loose)} loose files, more than {LOOSE}")
    return broken


# ---- the map

COLOURS = {"runsc_config": "#e8f1e4", "node": "#f6ecd9", "shim": "#e2ebf5", "tool": "#f1e3ef", "integration": "#eeeeee"}
SHOWN = ("runsc_config", "node", "shim", "tool")


def rooms(house):
    """Rooms with their files, lines, purpose and arrows."""
    every, arrows = {}, {}

    def room_of(key):
        crate, _ = key
        room = house.files[key].room
        return f"{crate}/{room}" if room else crate

    for key, source in house.files.items():
        if key[0] in SHOWN:
            room = every.setdefault(room_of(key), {"files": 0, "lines": 0, "purpose": ""})
            room["files"] += 1
            room["lines"] += source.lines
            if source.path.endswith(("/mod.rs", "/lib.rs", "/main.rs")):
                head = re.match(r"((?://![^\n]*\n)+)", source.text)
                text = re.sub(r"\s+", " ", re.sub(r"//! ?", " ", head.group(1))).strip() if head else ""
                room["purpose"] = re.split(r"(?<=[.:]) (?=[A-Z`])", text)[0]
            for to in house.arrows[key]:
                if to[0] in SHOWN and room_of(to) != room_of(key):
                    arrows.setdefault(room_of(key), set()).add(room_of(to))
    return every, arrows


def layers(every, arrows):
    """The row of each room: one below all that import it."""
    depth = {}

    def of(room, path):
        if room in depth:
            return depth[room]
        below = [of(to, (*path, room)) for to in sorted(arrows.get(room, ())) if to not in (*path, room)]
        depth[room] = 1 + max(below, default=-1)
        return depth[room]

    for room in sorted(every):
        of(room, ())
    return depth


def draw(every, arrows):
    depth = layers(every, arrows)
    rows = {}
    for room in sorted(every, key=lambda name: (list(CRATES).index(name.split("/")[0]), name)):
        rows.setdefault(depth[room], []).append(room)
    box, gap, high, between = 150, 22, 44, 58
    wide = max(len(row) for row in rows.values()) * (box + gap) + gap
    tall = len(rows) * (high + between) + 60
    place = {}
    for level, row in rows.items():
        left = (wide - len(row) * (box + gap) + gap) / 2
        for number, room in enumerate(row):
            place[room] = (left + number * (box + gap), 40 + (max(rows) - level) * (high + between))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{tall:.0f}" viewBox="0 0 {wide:.0f} {tall:.0f}" '
           'font-family="sans-serif" font-size="12">',
           '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
           '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
           f'<rect width="{wide:.0f}" height="{tall:.0f}" fill="#ffffff"/>',
           '<text x="12" y="20" font-weight="bold">Crates and rooms. An arrow points to what is imported.</text>']
    for room in sorted(arrows):
        for to in sorted(arrows[room]):
            x, y = place[room][0] + box / 2, place[room][1] + high
            to_x, to_y = place[to][0] + box / 2, place[to][1]
            colour = "#667" if to_y > y else "#b00"
            out.append(f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + 30:.0f} {to_x:.0f} {to_y - 30:.0f} {to_x:.0f} {to_y:.0f}" '
                       f'fill="none" stroke="{colour}" stroke-opacity="0.55" marker-end="url(#to)"/>')
    for room, (x, y) in sorted(place.items()):
        crate, _, name = room.partition("/")
        title = name or {"shim": "main, error", "tool": "main and loose files"}.get(crate, "(crate)")
        known = every[room]
        out.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{box}" height="{high}" rx="6" fill="{COLOURS[crate]}" stroke="#889"/>')
        out.append(f'<text x="{x + box / 2:.0f}" y="{y + 18:.0f}" text-anchor="middle" font-weight="bold">'
                   f"{html.escape(title)}</text>")
        out.append(f'<text x="{x + box / 2:.0f}" y="{y + 34:.0f}" text-anchor="middle" fill="#556">{crate.replace("_", "-")}, '
                   f'{known["files"]} file{"s" if known["files"] != 1 else ""}</text>')
    return "\n".join([*out, "</svg>", ""])


BEGIN, END = "<!-- rooms: made by `make map` -->\n", "<!-- end of rooms -->\n"


def table(every, arrows):
    lines = ["| room | what is there | imports |", "|---|---|---|"]
    for room in sorted(every, key=lambda name: (list(CRATES).index(name.split("/")[0]), name)):
        to = ", ".join(f"`{name}`" for name in sorted(arrows.get(room, ()))) or "none"
        lines.append(f"| `{room}` | {every[room]['purpose']} | {to} |")
    return "\n".join(lines) + "\n"


def make_map(house, check):
    every, arrows = rooms(house)
    page = REPO / "docs/architecture.md"
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return [f"docs/architecture.md has no place for the rooms ({BEGIN.strip()} … {END.strip()})"]
    wanted = {
        page: before + BEGIN + "\n" + table(every, arrows) + "\n" + END + after,
        REPO / "docs/pictures/map.svg": draw(every, arrows),
    }
    differing = []
    for path, content in wanted.items():
        if not path.exists() or path.read_text() != content:
            differing.append(f"{path.relative_to(REPO)} differs from the code: run `make map`")
            if not check:
                path.write_text(content)
    return differing if check else []


def main(arguments):
    house = House()
    if arguments in (["walls"], ["walls", "all"]):
        faults = walls(house)
        if "all" not in arguments:
            faults = [fault for fault in faults if fault.startswith(HELD)]
    elif arguments in (["map"], ["map", "--check"]):
        faults = make_map(house, "--check" in arguments)
    else:
        faults = [__doc__]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
