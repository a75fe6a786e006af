"""Serves an OCI archive on the loopback, under the names that critest has for its images: ARCHIVE PORT

As much of a registry as pulling asks for. containerd is sent here whatever the host in a name, so only its path counts.
"""

import hashlib
import http.server
import json
import platform
import sys
import tarfile

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
SERVER = {"Cmd": ["nginx", "-g", "daemon off;"]}
E2E, OWN = "e2e-test-images/", "k8s-staging-cri-tools/"
# What the archive's configuration has beside in each. Different paths are different images, different tags are not.
IMAGES = {
    # Holds a pod open. Not `sleep`: a spec looks whether one is left over.
    "sandbox:latest": {"Cmd": ["tail", "-f", "/dev/null"]},
    "pause:3.9": {},
    E2E + "busybox:1.29-2": {},
    E2E + "nginx:1.14-2": SERVER,
    # A spec looks for its name in its log.
    E2E + "httpd:2.4.39-4": {"Cmd": ["sh", "-c", "echo httpd; exec httpd -f -h /var/www/html"]},
    E2E + "nonewprivs:1.3": {"Cmd": ["sh", "-c", "echo Effective uid: $(set-uid-id -u)"]},
    OWN + f"hostnet-nginx-{ARCHITECTURE}:latest": SERVER,
    OWN + "test-image-user-uid:latest": {"User": "1002"},
    OWN + "test-image-user-username:latest": {"User": "www-data"},
    OWN + "test-image-user-uid-group:latest": {"User": "1003:users"},
    OWN + "test-image-user-username-group:latest": {"User": "www-data:100"},
    OWN + "test-image-predefined-group:latest": {"User": "1000"},
}
for name in ("latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest", "tags:1", "tags:2", "tags:3"):
    IMAGES[f"{OWN}test-image-{name}"] = {}


def furnish(archive, images):
    """Everything that is served, by its address."""
    with tarfile.open(archive) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}

    def blob(descriptor):
        return files["blobs/" + descriptor["digest"].replace(":", "/")]

    index = json.loads(files["index.json"])["manifests"][0]
    manifest = json.loads(blob(index))
    served = {}
    for name, more in images.items():
        path, _, tag = name.partition(":")

        def serve(kind, descriptor, content, *names):
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            for each in (digest, *names):
                served[f"/v2/{path}/{kind}/{each}"] = (descriptor["mediaType"], digest, content)
            return {**descriptor, "digest": digest, "size": len(content)}

        configuration = json.loads(blob(manifest["config"]))
        configuration["config"].update(more, Labels={"path": path})
        config = serve("blobs", manifest["config"], json.dumps(configuration).encode())
        serve("manifests", index, json.dumps({**manifest, "config": config}).encode(), tag)
        for layer in manifest["layers"]:
            serve("blobs", layer, blob(layer))
    return served


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served = {}

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        found = self.served.get(self.path.partition("?")[0])
        media_type, digest, content = found or ("text/plain", "", b"not here\n")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        if found:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if with_content:
            self.wfile.write(content)


if __name__ == "__main__":
    Registry.served = furnish(sys.argv[1], IMAGES)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Registry).serve_forever()
