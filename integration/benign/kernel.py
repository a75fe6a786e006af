"""A Jupyter kernel on loopback, as a notebook talks to it."""

import os

os.environ.update(HOME="/tmp", JUPYTER_RUNTIME_DIR="/tmp/jupyter", IPYTHONDIR="/tmp/ipython")
from jupyter_client.manager import start_new_kernel  # noqa: E402

manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    said = []

    def hear(message):
        if message["msg_type"] == "stream":
            said.append(message["content"]["text"])

    client.execute_interactive("print(6 * 7)", timeout=60, output_hook=hear)
    print("kernel", "".join(said).strip())
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
