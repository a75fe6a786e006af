#!/usr/bin/env python3
"""docs/SPECIFICATION.md and the tests agree, and what the other papers name is there.

promises.py         prints each fault by name, and fails if there is one
promises.py tests   prints the full name of every test
"""

import glob
import os
import re
import sys

# A row names the commit of a checkout without changes, and compiled modules would be one.
sys.dont_write_bytecode = True
from evidence import REPOSITORY, read, said  # noqa: E402

SPECIFICATION = "docs/SPECIFICATION.md"
PROMISES = "| number | promise | value | held by |"
MEASURED = "| number | figure | value | measured by |"
INDEX = "docs/index.md"
# Papers whose links and commits are looked up.
PAPERS = [SPECIFICATION, INDEX, "docs/decisions.md", "docs/glossary.md", "docs/support.md", "CONTRIBUTING.md"]
# Where unit tests are, and how the names of their crate begin. The first folder that a file lies in counts.
CRATES = [("shim/tool/src", "bulkhead"), ("shim/node/src", "node"), ("shim/src", "shim"), ("runsc-config/src", "runsc_config"),
          ("runsc-config/tests", ""), ("integration/src", "integration")]


def files(pattern):
    """Paths below the repository, sorted."""
    return sorted(glob.glob(pattern, root_dir=REPOSITORY, recursive=True))


def module(path):
    """`a/b/mod.rs` and `a/b.rs` as `a::b`; the root of a crate as nothing."""
    parts = path.removesuffix(".rs").split("/")
    if parts[-1] in ("mod", "main", "lib"):
        parts.pop()
    return "::".join(parts)


def joined(*parts):
    return "::".join(part for part in parts if part)


def asked_for(program, within):
    """The name of a subject, which lacks its room, and whether the program asks for the subject's tests."""
    main, (room, _, subject) = read(f"integration/tests/{program}/main.rs"), within.partition("::")
    head = f"integration/tests/{program}/{room}/mod.rs"
    listed = re.search(r"room!\s*\[(.*?)\]", read(head), re.DOTALL) if os.path.exists(os.path.join(REPOSITORY, head)) else None
    if not listed:
        return within, bool(re.search(rf"\b{within}::cases\(\)", main))
    there = subject in re.split(r"[\s,]+", listed[1])
    return subject, there and bool(re.search(rf"\b{room}::cases\(\)", main))


def behaviours():
    """The tests of integration/tests, as `cases!` and the tables of `programs!` and CASES list them."""
    for path in files("integration/tests/*/**/*.rs"):
        text = re.sub(r"//[^\n]*", "", read(path))
        program, _, rest = path.removeprefix("integration/tests/").partition("/")
        within = module(rest)
        for name in re.findall(r'^    \(?\s*"(\w+::\w+)",', text, re.MULTILINE) if "const CASES" in text else []:
            yield joined(program, name)
        names = []
        for block in re.findall(r"cases! \{.*?\]\s*,?\s*\}", text, re.DOTALL):
            for group in re.findall(r"=>\s*\[(.*?)\]", block, re.DOTALL):
                names += [name.strip() for name in group.split(",")]
        for block in re.findall(r"^programs! \{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE):
            names += re.findall(r"^    (\w+):", block, re.MULTILINE)
        within, is_run = asked_for(program, within)
        # A list that its program does not ask for is run by nobody.
        if names and is_run:
            yield from (joined(program, within, name) for name in names if re.fullmatch(r"\w+", name))


def units():
    """The tests that cargo itself runs."""
    test = re.compile(r"#\[(?:tokio::)?test(?:\([^\n]*\))?\]\n(?:\s*#\[[^\n]*\]\n)*\s*(?:async )?fn (\w+)")
    seen = set()
    for folder, crate in CRATES:
        for path in files(f"{folder}/**/*.rs"):
            if path in seen:
                continue
            seen.add(path)
            text = read(path)
            inner = text.find("mod tests {")
            for found in test.finditer(text):
                tests = "tests" if -1 < inner < found.start() else ""
                yield joined(crate, module(path.removeprefix(folder + "/")), tests, found[1])


def rows(text, head):
    """The cells of each row of all tables that begin with `head`."""
    lines = iter(text.splitlines())
    for line in lines:
        if line == head:
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                yield [cell.strip() for cell in row.strip("|").split("|")]


def of_promises(faults):
    """Every promise has a number of its own and a test that is there."""
    text, numbers = read(SPECIFICATION), {}
    known = {*behaviours(), *units()}
    benches = {f"benches::{module(os.path.basename(path))}" for path in files("integration/benches/*.rs")}
    for head, there, what in ((PROMISES, known, "test"), (MEASURED, benches, "bench")):
        for cells in rows(text, head):
            number = cells[0]
            if len(cells) != 4 or not re.fullmatch(r"[A-Z]\d+", number):
                faults.append(f"{SPECIFICATION}: {number}: a row has a number, as P1, and three more cells")
                continue
            if number in numbers:
                faults.append(f"{SPECIFICATION}: {number} is given twice")
            numbers[number] = cells
            names = re.findall(r"`([^`]+)`", cells[3])
            if not names:
                faults.append(f"{SPECIFICATION}: {number} names no {what} that holds it")
            faults += [f"{SPECIFICATION}: {number} names {name}, and there is no such {what}"
                       for name in names if name not in there]
    # A table with another head would be read by nobody.
    faults += [f"{SPECIFICATION}: {number} is in a table that begins neither with {PROMISES} nor with {MEASURED}"
               for number in re.findall(r"^\| ([A-Z]\d+) \|", text, re.MULTILINE) if number not in numbers]
    if not numbers:
        faults.append(f"{SPECIFICATION}: it has no promise")


def of_papers(faults):
    """Links lead somewhere, commits are of this history, and the index has every document."""
    whole = said("git", "rev-parse", "--is-shallow-repository") == "false"
    there = [paper for paper in PAPERS if os.path.exists(os.path.join(REPOSITORY, paper))]
    faults += [f"{paper} is missing" for paper in PAPERS if paper not in there]
    for paper in there:
        text = read(paper)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            place = os.path.normpath(os.path.join(os.path.dirname(paper), target))
            if "://" not in target and not os.path.exists(os.path.join(REPOSITORY, place)):
                faults.append(f"{paper}: {target} is linked, and there is no {place}")
        # A checkout without history cannot say.
        for commit in set(re.findall(r"`([0-9a-f]{7,10})`", text)) if whole else ():
            if not said("git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
                faults.append(f"{paper}: {commit} is no commit of this history")
    index = read(INDEX)
    for path in files("docs/*.md"):
        name = os.path.basename(path)
        if path != INDEX and f"({name})" not in index:
            faults.append(f"{INDEX}: {name} is missing")


def main():
    if sys.argv[1:] == ["tests"]:
        print("\n".join(sorted({*behaviours(), *units()})))
        return
    if sys.argv[1:]:
        sys.exit(__doc__)
    faults = []
    of_promises(faults)
    of_papers(faults)
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
