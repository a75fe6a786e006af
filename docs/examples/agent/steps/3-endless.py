"""A step that does not end, with a child in the background that would go on without it."""

import os

print("here I stay", flush=True)
os.fork()
while True:
    pass
