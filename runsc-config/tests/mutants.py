#!/usr/bin/env python3
"""Loosens one rule at a time, as the table of README.md says, and expects the tests to notice: mutants.py [WORD…]."""

import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
COPY = os.path.join(REPOSITORY, "target", "mutants")
LIMIT = 600


def table():
    """The rows: rule, file, from, to. In a cell `\\n` is a new line and `\\|` a bar."""
    with open(os.path.join(HERE, "README.md")) as file:
        lines = [line.rstrip("\n") for line in file if line.startswith("| ")]
    for line in lines[1:]:
        cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        yield [cell.replace("\\|", "|").replace("\\n", "\n") for cell in cells]


def copy():
    """The workspace without what it builds."""
    shutil.rmtree(os.path.join(COPY, "tree"), ignore_errors=True)
    tree = os.path.join(COPY, "tree")
    os.makedirs(tree)
    for name in ("Cargo.toml", "Cargo.lock", "clippy.toml", "runsc-config", "shim", "integration", "docs"):
        source = os.path.join(REPOSITORY, name)
        if os.path.isdir(source):
            # The corpus is no source.
            shutil.copytree(source, os.path.join(tree, name), ignore=shutil.ignore_patterns("fuzz"))
        elif os.path.exists(source):
            shutil.copy(source, tree)
    return tree


def tests(tree):
    command = ["cargo", "test", "--locked", "--quiet", "-p", "runsc-config"]
    environment = {**os.environ, "CARGO_TARGET_DIR": os.path.join(COPY, "build"), "RUSTFLAGS": "-Awarnings"}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT
    )


def main():
    tree = copy()
    whole = tests(tree)
    if whole.returncode != 0:
        sys.exit(f"the tests fail as it is:\n{whole.stdout}{whole.stderr}")
    faults, count = [], 0
    for rule, name, before, after in table():
        if sys.argv[1:] and not any(word in rule for word in sys.argv[1:]):
            continue
        count += 1
        path = os.path.join(tree, "runsc-config", "src", name)
        with open(path) as file:
            text = file.read()
        if before not in text:
            faults.append(f"{rule}: {name} no longer has {before!r}")
            continue
        with open(path, "w") as file:
            file.write(text.replace(before, after, 1))
        result = tests(tree)
        with open(path, "w") as file:
            file.write(text)
        said = result.stdout + result.stderr
        if result.returncode == 0:
            word = "NOBODY NOTICED"
            faults.append(f"{rule}: loosened, and every test passes")
        elif "could not compile" in said:
            word = "DOES NOT COMPILE"
            faults.append(f"{rule}: the change does not compile:\n{said[-1500:]}")
        else:
            word = "noticed"
        print(f"{word:<17} {rule}", flush=True)
    print(f"{count} rules loosened, {len(faults)} not noticed")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
