"""An agent's host, as many are written: it runs the text that a model answered with, and thinks
that taking the builtins, os and sys away makes that safe."""

import sys

with open("answer.py") as answer:
    code = compile(answer.read(), "answer.py", "exec")

wait = sys.stdin.readline
for name in ("builtins", "os", "sys", "posix", "subprocess"):
    sys.modules.pop(name, None)

exec(code, {"__builtins__": {}})

# Stays until told: the demo looks at the files from outside while the program still runs.
wait()
