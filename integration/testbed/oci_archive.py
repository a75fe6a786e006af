"""Writes a folder as an OCI image archive of one layer: TREE NAME OUT COMMAND... What the environment has as
IMAGE_CONFIG, a JSON object, is added to the image's configuration: volumes, a user.

Everything that would differ between two runs is fixed (order, times, owners' names), so the same
tree gives the same bytes.
"""

import hashlib
import io
import json
import os
import platform
import sys
import tarfile

EPOCH = 946684800
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def add(archive, path, name):
    entry = archive.gettarinfo(path, name)
    # None: sockets, which no image holds.
    if entry is None:
        return
    entry.mtime = EPOCH
    entry.uname = entry.gname = ""
    if entry.isfile():
        with open(path, "rb") as content:
            archive.addfile(entry, content)
    else:
        archive.addfile(entry)


def layer(tree):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder, folders, files in os.walk(tree):
            folders.sort()
            for name in sorted(folders + files):
                path = os.path.join(folder, name)
                add(archive, path, os.path.relpath(path, tree))
    return out.getvalue()


def main(tree, name, out, *command):
    blobs = {}

    def blob(media_type, content):
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(media_type, value):
        return blob(media_type, json.dumps(value, sort_keys=True).encode())

    # Not compressed: importing takes a third of the time, and nobody downloads it.
    content = blob("application/vnd.oci.image.layer.v1.tar", layer(tree))
    config = document(
        "application/vnd.oci.image.config.v1+json",
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {
                "Cmd": list(command),
                "Env": [f"PATH={SEARCH_PATH}"],
                "WorkingDir": "/",
                **json.loads(os.environ.get("IMAGE_CONFIG", "{}")),
            },
            "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
        },
    )
    manifest = document(
        "application/vnd.oci.image.manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [content],
        },
    )
    manifest["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    files = {
        "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode(),
    }
    files.update({f"blobs/sha256/{digest}": blobs[digest] for digest in sorted(blobs)})
    with tarfile.open(out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            entry.mtime = EPOCH
            archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
