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
    """The rows: rule, file, from, to, and for the shim its tests. In a cell `\\n` is a new line and `\\|` a bar."""
    with open(os.path.join(HERE, "README.md")) as file:
        lines = [line.rstrip("\n") for line in file if line.startswith("| ")]
    for line in lines:
        cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        cells = [cell.replace("\\|", "|").replace("\\n", "\n") for cell in cells]
        if cells[0] != "rule":
            yield cells + [""] * (5 - len(cells))


def copy():
    """The workspace without what it builds."""
    shutil.rmtree(os.path.join(COPY, "tree"), ignore_errors=True)
    tree = os.path.join(COPY, "tree")
    os.makedirs(tree)
    for name in ("Cargo.toml", "Cargo.lock", "clippy.toml", "runsc-config", "shim", "integration", "docs"):
        source = os.path.join(REPOSITORY, name)
        if os.path.isdir(source):
            # The corpus is no source. Files are as new as the copy: cargo goes by that, and what the last run built was changed.
            shutil.copytree(source, os.path.join(tree, name), ignore=shutil.ignore_patterns("fuzz"), copy_function=shutil.copy)
        elif os.path.exists(source):
            shutil.copy(source, tree)
    return tree


def tests(tree, which=""):
    """Those of runsc-config; of the shim the ones that `which` names, after the word for their kind."""
    built = os.path.join(COPY, "build")
    environment = {**os.environ, "CARGO_TARGET_DIR": built, "RUSTFLAGS": "-Awarnings"}
    kind, _, names = which.partition(" ")
    package = "bulkhead-shim" if kind else "runsc-config"
    shim = ["--bin", "bulkhead" if kind == "tool" else "containerd-shim-bulkhead-v1"] if kind else []

    def cargo(verb, *more, where=tree, environment=environment):
        command = ["cargo", verb, "--locked", "--quiet", *more]
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=LIMIT)

    if kind not in ("suite", "pods"):
        # Most rules have a test beside them: what that notices needs no program built for the others.
        result = cargo("test", "-p", package, *(shim or ["--lib"]), *(["--", *names.split()] if kind else []))
        return result if kind or result.returncode != 0 else cargo("test", "-p", package)
    # The node tool as well: without it tests of it are skipped, and notice nothing.
    result = cargo("build", "-p", package)
    if result.returncode != 0:
        return result
    environment = {**os.environ, "BULKHEAD_TEST_PATH": os.path.join(built, "debug"), "BULKHEAD_TEST_ONLY": names}
    return cargo("test", "-p", "integration", "--test", kind, where=REPOSITORY, environment=environment)


def main():
    tree = copy()
    whole = tests(tree)
    if whole.returncode != 0:
        sys.exit(f"the tests fail as it is:\n{whole.stdout}{whole.stderr}")
    faults, count = [], 0
    for rule, name, before, after, which in table():
        if sys.argv[1:] and not any(word in rule for word in sys.argv[1:]):
            continue
        count += 1
        path = os.path.join(tree, "shim" if which else "runsc-config", "src", name)
        with open(path) as file:
            text = file.read()
        if before not in text:
            faults.append(f"{rule}: {name} no longer has {before!r}")
            continue
        with open(path, "w") as file:
            file.write(text.replace(before, after, 1))
        result = tests(tree, which)
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
