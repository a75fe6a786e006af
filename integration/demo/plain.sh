#!/usr/bin/env bash
# The plain process: no container, this machine's own files and network. A layer over the root
# takes what it writes, so that a demo leaves nothing in anybody's /etc or /usr.
set -euo pipefail

layer=$1 folder=$2
mkdir -p "$layer"
mount -t tmpfs layer "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" overlay "$layer/root"
for mounted in proc sys dev run; do mount --rbind "/$mounted" "$layer/root/$mounted"; done
mount -t tmpfs shm "$layer/root/dev/shm"
exec chroot "$layer/root" /usr/bin/env -C "$folder" \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin python3 host.py
