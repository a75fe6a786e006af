"""Work that runs into every limit of files: `files.py WHAT FOLDER`; the last line says what came of it."""

import errno
import os
import signal
import subprocess
import sys

what, folder = sys.argv[1:]
names = [os.path.join(path, name) for path, _, files in os.walk(folder) for name in files]
errors = {}


def told(error):
    name = errno.errorcode.get(error.errno, str(error.errno))
    errors[name] = errors.get(name, 0) + 1


def read(name):
    with open(name, "rb") as file:
        return file.read()


if what == "walk":
    # Every name, and the content of each: more than is remembered, twice.
    for _ in range(2):
        for name in names:
            os.stat(name)
            assert read(name) == b"", name
    for number in range(20_000):
        try:
            os.stat(f"{folder}/none-{number}")
        except FileNotFoundError:
            continue
        raise SystemExit("a file that is not there")
elif what == "hold":
    # As many at once as there are descriptors for.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    held = []
    for name in names:
        try:
            held.append(os.open(name, os.O_RDONLY))
        except OSError as error:
            told(error)
            break
    count = len(held)
    # A program more, while nothing is left; it may fail. Then as long as the test wants it.
    try:
        subprocess.run(["/bin/true"], check=False)
    except OSError as error:
        told(error)
    signal.sigwait([signal.SIGUSR1])
    for descriptor in held:
        os.close(descriptor)
    # All is well once they are given back.
    for name in names[:: max(1, len(names) // 500)]:
        assert read(name) == b"", name
    print("held", count)
print("done", len(names), *sorted(errors))
