"""Work with files, each piece with its milliseconds: `files.py`. What a place does not take has none."""

import glob
import json
import os
import shutil
import time

LIBRARY = "/usr/lib"
PLACES = {"bind": "/srv", "scratch": "/tmp", "root": "/opt"}
FILES = 1000
told = {}


def walk():
    for path, _, names in os.walk(LIBRARY):
        for name in names:
            os.lstat(os.path.join(path, name))


def read():
    for folder in glob.glob(LIBRARY + "/python3*"):
        for path, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".py"):
                    with open(os.path.join(path, name), "rb") as file:
                        file.read()


def write(folder):
    os.mkdir(folder)
    for number in range(FILES):
        with open(f"{folder}/{number}", "wb") as file:
            file.write(b"x" * 4096)


def read_back(folder):
    for number in range(FILES):
        with open(f"{folder}/{number}", "rb") as file:
            file.read()


def timed(name, work, *arguments):
    began = time.perf_counter()
    try:
        work(*arguments)
    except OSError:
        return
    told[name] = (time.perf_counter() - began) * 1000


for turn in ("first", "second"):
    timed(f"stat of {LIBRARY}, {turn}", walk)
for turn in ("first", "second"):
    timed(f"read of Python's library, {turn}", read)
for kind, place in PLACES.items():
    folder = f"{place}/small"
    timed(f"{FILES} files on {kind}: write", write, folder)
    if os.path.isdir(folder):
        timed(f"{FILES} files on {kind}: read", read_back, folder)
        timed(f"{FILES} files on {kind}: remove", shutil.rmtree, folder)
print(json.dumps(told))
