"""What pip does with a wheel: unpacks it into a folder, from which Python loads a shared object."""

import glob
import os
import sys
import zipfile

module = glob.glob("/usr/lib/python3.11/lib-dynload/_bz2.*.so")[0]
with zipfile.ZipFile("/tmp/package-1.0-cp311-cp311-linux_x86_64.whl", "w") as wheel:
    wheel.write(module, "package/" + os.path.basename(module))
    wheel.writestr("package/__init__.py", "from ._bz2 import BZ2Compressor\n")
with zipfile.ZipFile("/tmp/package-1.0-cp311-cp311-linux_x86_64.whl") as wheel:
    wheel.extractall("/tmp/site")
sys.path.insert(0, "/tmp/site")
import package  # noqa: E402

print("wheel", type(package.BZ2Compressor()).__name__)
