"""The work of a program that an agent starts, each piece twice, with the milliseconds of both passes: `work.py`. What a place does not
take has none."""

import contextlib
import glob
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time

LIBRARY = "/usr/lib"
PYTHON = glob.glob(LIBRARY + "/python3.*")[0]
WHEELS = glob.glob("/usr/share/python-wheels/setuptools-*.whl")
PLACES = {"bind": "/srv", "scratch": "/tmp", "root": "/opt"}
MODULES = "argparse asyncio ctypes decimal difflib email.message http.client json logging sqlite3 tarfile unittest urllib.request zipfile"
FILES = 1000
FORKS = 100
THREADS = 500
MESSAGES = 5000
COMMITS = 100
told = []


def files_below(folder, end=""):
    for path, _, names in os.walk(folder):
        for name in names:
            if name.endswith(end):
                yield os.path.join(path, name)


def walk():
    return sum(1 for path in files_below(LIBRARY) if os.lstat(path))


def read():
    for path in files_below(PYTHON, ".py"):
        with open(path, "rb") as file:
            file.read()


def run(*words, **options):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options)


def imports():
    run(sys.executable, "-I", "-c", "import " + MODULES.replace(" ", ", "))


def forks():
    for _ in range(FORKS):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


def threads():
    for _ in range(THREADS):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()


def echo(read_one, write_one):
    for _ in range(MESSAGES):
        write_one(read_one())
    os._exit(0)


def pipe():
    there, back = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        echo(lambda: os.read(there[0], 1), lambda byte: os.write(back[1], byte))
    for _ in range(MESSAGES):
        os.write(there[1], b"x")
        os.read(back[0], 1)
    os.waitpid(child, 0)
    for end in there + back:
        os.close(end)


def loopback():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        child = os.fork()
        if child == 0:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            echo(lambda: far.recv(64), far.send)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(MESSAGES):
            near.send(b"x" * 64)
            near.recv(64)
        os.waitpid(child, 0)
        far.close()


def pack():
    run("sh", "-c", f"tar -cf - {PYTHON} | cat")


def write(folder):
    os.mkdir(folder)
    for number in range(FILES):
        with open(f"{folder}/{number}", "wb") as file:
            file.write(b"x" * 4096)


def read_back(folder):
    for number in range(FILES):
        with open(f"{folder}/{number}", "rb") as file:
            file.read()


def commits(folder):
    with contextlib.closing(sqlite3.connect(f"{folder}/commits")) as base:
        base.execute("create table if not exists numbers (number)")
        for number in range(COMMITS):
            base.execute("insert into numbers values (?)", (number,))
            base.commit()


def install(folder):
    words = ["--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--no-compile", "--disable-pip-version-check", "--target", folder]
    run(sys.executable, "-m", "pip", "install", *words, WHEELS[0], env={"HOME": "/tmp", "PATH": "/usr/bin"})


def untar(archive, folder):
    run("tar", "-xf", archive, "--no-same-owner", "-C", folder)


def git(folder, *words):
    environment = {"HOME": "/tmp", "GIT_CONFIG_NOSYSTEM": "1", "PATH": "/usr/bin"}
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0", *words, cwd=folder, env=environment)


def timed(work, *arguments):
    began = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - began) * 1000


def twice(name, work, *arguments):
    told.append((name, [timed(work, *arguments), timed(work, *arguments)]))


def of_place(kind, place):
    folder, passes = f"{place}/work", []
    try:
        os.mkdir(folder)
    except OSError:
        return
    for turn in ("first", "second"):
        small = f"{folder}/{turn}"
        steps = [timed(write, small), timed(read_back, small), timed(shutil.rmtree, small)]
        passes.append(steps)
    for at, step in enumerate(("write", "read", "remove")):
        told.append((f"{FILES} files on {kind}: {step}", [steps[at] for steps in passes]))
    twice(f"{COMMITS} commits of sqlite on {kind}", commits, folder)
    if WHEELS:
        passes = []
        for turn in ("first", "second"):
            passes.append(timed(install, f"{folder}/{turn}"))
            shutil.rmtree(f"{folder}/{turn}")
        told.append((f"pip install of a wheel on {kind}", passes))
    # A tree that scratch has room for, as one writes it: from an archive, and then git's.
    archive, passes = "/tmp/tree.tar", []
    with tarfile.open(archive, "w") as file:
        for path in sorted(files_below(PYTHON, ".py"))[:600]:
            file.add(path)
    for turn in ("first", "second"):
        os.mkdir(f"{folder}/{turn}")
        passes.append(timed(untar, archive, f"{folder}/{turn}"))
    told.append((f"untar of 600 files on {kind}", passes))
    os.remove(archive)
    shutil.rmtree(f"{folder}/first")
    git(f"{folder}/second", "init", "--quiet")
    git(f"{folder}/second", "add", ".")
    git(f"{folder}/second", "commit", "--quiet", "-m", "all")
    twice(f"git status of 600 files on {kind}", git, f"{folder}/second", "status", "--porcelain")
    shutil.rmtree(folder)


# The first walk counts: nothing may have been asked before it.
began = time.perf_counter()
files = walk()
first = (time.perf_counter() - began) * 1000
told.append((f"stat of {files} files of an image", [first, timed(walk)]))
twice("read of Python's library", read)
twice("import of 14 modules", imports)
twice("tar of Python's library", pack)
twice(f"{FORKS} forks", forks)
twice(f"{THREADS} threads", threads)
twice(f"{MESSAGES} round trips by a pipe", pipe)
twice(f"{MESSAGES} round trips by loopback", loopback)
for kind, place in PLACES.items():
    of_place(kind, place)
print(json.dumps(told))
