#!/usr/bin/env python3
"""Loosens one rule at a time, as mutants.toml says, and expects the tests to notice.

mutants.py [WORD…]   tries the rules with one of the words in their names, or all
mutants.py check     tries none: prints each row that no longer fits the code, and fails if there is one
"""

import os
import shutil
import subprocess
import sys
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
COPY = os.path.join(REPOSITORY, "target", "mutants")
LIMIT = 600


# The kinds of tests that a row names: units of the package that has the row's file, or behaviours.
KINDS = ("unit", "suite", "pods")
# The first folder that a file lies in counts.
PACKAGES = {"shim/node/": "bulkhead-node", "shim/tool/": "bulkhead-tool", "shim/": "bulkhead-shim", "runsc-config/": "runsc-config"}


def package(row):
    return next(package for folder, package in PACKAGES.items() if row["file"].startswith(folder))


def rows():
    with open(os.path.join(HERE, "mutants.toml"), "rb") as file:
        return tomllib.load(file)["mutant"]


def misfit(row, text):
    """What is wrong with a row, by the text of its file; nothing if it fits."""
    count, kind = text.count(row["from"]), row.get("tests", "").partition(" ")[0]
    if count != 1:
        return f"{row['rule']}: {row['file']} has {row['from']!r} {count} times, not once"
    if row["from"] == row["to"]:
        return f"{row['rule']}: it changes nothing"
    if kind and kind not in KINDS:
        return f"{row['rule']}: {kind!r} is no kind of tests: {', '.join(KINDS)}"
    return None


def read(tree, row):
    try:
        with open(os.path.join(tree, row["file"])) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def check():
    """Every row fits the code, and no two have one name."""
    all_rows = rows()
    names = [row["rule"] for row in all_rows]
    faults = [f"{name}: two rows have this name" for name in sorted(set(names)) if names.count(name) > 1]
    faults += filter(None, (misfit(row, read(REPOSITORY, row)) for row in all_rows))
    if faults:
        sys.exit("\n".join(f"runsc-config/tests/mutants.toml: {fault}" for fault in faults))


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


def tests(tree, row=None):
    """Those that a row names, or all of runsc-config."""
    which = row.get("tests", "") if row else ""
    built = os.path.join(COPY, "build")
    environment = {**os.environ, "CARGO_TARGET_DIR": built, "RUSTFLAGS": "-Awarnings"}
    kind, _, names = which.partition(" ")

    def cargo(verb, *more, where=tree, environment=environment):
        command = ["cargo", verb, "--locked", "--quiet", *more]
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=LIMIT)

    if not kind:
        # Most rules have a test beside them: what that notices needs no program built for the others.
        result = cargo("test", "-p", "runsc-config", "--lib")
        return result if result.returncode != 0 else cargo("test", "-p", "runsc-config")
    if kind not in ("suite", "pods"):
        return cargo("test", "-p", package(row), "--", *names.split())
    # The node tool as well: without it tests of it are skipped, and notice nothing.
    result = cargo("build", "-p", "bulkhead-shim", "-p", "bulkhead-tool")
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
    for row in rows():
        rule, path = row["rule"], os.path.join(tree, row["file"])
        if sys.argv[1:] and not any(word in rule for word in sys.argv[1:]):
            continue
        count += 1
        text = read(tree, row)
        fault = misfit(row, text)
        if fault:
            faults.append(fault)
            continue
        with open(path, "w") as file:
            file.write(text.replace(row["from"], row["to"]))
        result = tests(tree, row)
        with open(path, "w") as file:
            file.write(text)
        said = result.stdout + result.stderr
        if result.returncode == 0:
            word = "NOBODY NOTICED"
            faults.append(f"{rule}: loosened, and every test passes")
        elif "could not compile" in said:
            word = "DOES NOT COMPILE"
            faults.append(f"{rule}: the change does not compile:\n{said[-1500:]}")
        elif "test failed, to rerun" not in said:
            word = "DID NOT RUN"
            faults.append(f"{rule}: no test has failed, and cargo has:\n{said[-1500:]}")
        else:
            word = "noticed"
        print(f"{word:<17} {rule}", flush=True)
    print(f"{count} rules loosened, {len(faults)} not noticed")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    check() if sys.argv[1:] == ["check"] else main()
