"""Threads, processes with a queue between them, a subprocess, sqlite on scratch."""

import concurrent.futures
import multiprocessing
import sqlite3
import subprocess


def square(number):
    return number * number


with concurrent.futures.ThreadPoolExecutor(20) as pool:
    assert sum(pool.map(square, range(100))) == 328350
with multiprocessing.Pool(4) as pool:
    assert sum(pool.map(square, range(100))) == 328350
assert subprocess.check_output("echo a b | tr a-z A-Z", shell=True, text=True) == "A B\n"
base = sqlite3.connect("/tmp/base.db")
base.execute("create table t (x integer)")
base.executemany("insert into t values (?)", [(n,) for n in range(1000)])
base.commit()
print("threads", base.execute("select sum(x) from t").fetchone()[0])
