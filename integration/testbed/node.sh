#!/usr/bin/env bash
# node.sh [RELEASE…]: nodes with systemd and cgroup v2, each Debian RELEASE (bookworm and trixie) with its own kernel in QEMU, emulated by TCG
# whatever this machine has itself: containerd by upstream's unit, Bulkhead by its package, pods in slices as the kubelet makes them.
. "$(dirname "$0")/lib.sh"

machine=$target/node
deb=${BULKHEAD_NODE_DEB:-$(echo "$target"/deb/bulkhead_*_amd64.deb)}
# Arguments of the test program: names, or parts of them.
arguments=${BULKHEAD_NODE_ARGUMENTS:-}
# A machine that hangs is ended after so many seconds.
limit=${BULKHEAD_NODE_LIMIT:-2400}
# systemd waits 90 s for what does not end when it is told to. An emulated machine is slow, but not that slow.
power_off_limit=45

# newer DEB: the same package as a later version of it.
newer() {
  rm -rf "$machine/newer"
  dpkg-deb --raw-extract "$1" "$machine/newer"
  sed -i 's/^Version: .*/&+newer/' "$machine/newer/DEBIAN/control"
  dpkg-deb --root-owner-group -Zgzip --build "$machine/newer" "$machine/payload/newer.deb" >/dev/null
  rm -rf "$machine/newer"
}

# payload PROGRAM: the disk with what comes onto the node.
payload() {
  local payload=$machine/payload
  rm -rf "$payload" "$machine/payload.disk"
  mkdir -p "$payload"/{tools,images}
  cp -aL "$tools"/{containerd,ctr,runsc,bridge,host-local,loopback} "$payload/tools/"
  [ ! -d "$tools/gvisor-bin" ] || cp -aL "$tools/gvisor-bin" "$payload/tools/"
  cp "$images"/{busybox,pause}.tar "$payload/images/"
  cp "$1" "$payload/node"
  # Of a debug build, nine parts in ten are line tables.
  strip "$payload/node"
  cp "$here/node-run.sh" "$payload/run"
  cp "$deb" "$payload/bulkhead.deb"
  newer "$deb"
  printf '%s\n' "$arguments" >"$payload/arguments"
  cat >"$payload/10-pods.conflist" <<'JSON'
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods0", "isGateway": true,
  "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses", "ranges": [[{"subnet": "10.88.0.0/16"}]]}}]}
JSON
  cat >"$payload/config.toml" <<'TOML'
# The node's own.
version = 3

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "bulkhead.test/pause:latest"
TOML
  # https://github.com/containerd/containerd/blob/main/containerd.service
  cat >"$payload/containerd.service" <<'UNIT'
[Unit]
Description=containerd container runtime
After=network.target dbus.service
[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999
[Install]
WantedBy=multi-user.target
UNIT
  truncate -s 600M "$machine/payload.disk"
  mkfs.ext4 -q -F -d "$payload" "$machine/payload.disk"
  rm -rf "$payload"
}

# boot RELEASE: the node, its tests, its end.
boot() {
  local release=$1 log=$target/logs/node-$1.log status off
  say "==> booting $release with systemd (QEMU, TCG); at most $limit s"
  # Both disks are as they were when it ends. In the background it must not read the caller's terminal. Each line has the second it came at.
  timeout -k 5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 \
    -nographic -no-reboot -nic none -monitor none -serial stdio \
    -kernel "$machine/$release/vmlinuz" -initrd "$machine/$release/initrd" \
    -drive "file=$machine/$release/disk,format=raw,if=virtio,snapshot=on" \
    -drive "file=$machine/payload.disk,format=raw,if=virtio,snapshot=on" \
    -append "root=/dev/vda rw console=ttyS0 quiet loglevel=1 systemd.show_status=0 panic=-1 oops=panic" </dev/null 2>&1 |
    sed -u 's/\r//g; s/\x1b\[[?0-9;]*[a-zA-Z]//g; s/\x1bc//g; s/^[^#]\{1,12\}####/####/' | tee "$log" | grep --line-buffered -E '^(####|test |----|note: |panic|error|  |integration/|node: )' |
    while read -r line; do
      say "$line"
      [ "$line" != 'node: switching off with a container' ] || date +%s >"$log.off"
    done || true
  status=$(sed -n 's/^node: exit status //p' "$log" | tail -n 1)
  [ -n "$status" ] || die "the node did not finish; its console is in $log"
  off=$(($(date +%s) - $(cat "$log.off" 2>/dev/null || echo 0)))
  rm -f "$log.off"
  # As the test program says it, for the totals.
  if [ "$off" -le $power_off_limit ]; then
    say "test power_off::a_container_does_not_hold_it_up ... ok ($off s)"
    echo "test result: ok. 1 passed; 0 failed; 0 ignored" >>"$log"
  else
    say "test power_off::a_container_does_not_hold_it_up ... FAILED ($off s)"
    echo "test result: FAILED. 0 passed; 1 failed; 0 ignored" >>"$log"
    status=1
  fi
  return "$status"
}

need_machine containerd ctr runsc bridge
[ -f "$deb" ] || die "$deb is missing: make deb"
cd "$repo"
export CARGO_TARGET_DIR=$target
releases=("$@")
[ $# -gt 0 ] || releases=(bookworm trixie)
mkdir -p "$machine" "$target/logs"
for release in "${releases[@]}"; do
  [ -e "$machine/$release/made" ] || step "making a disk with Debian $release" "$here/node-base.sh" "$release"
done
program=${BULKHEAD_NODE_PROGRAM:-}
if [ -z "$program" ]; then
  step "building the tests" cargo test --locked -p integration --test node --no-run
  program=$(test_program node)
fi
step "making the disk of what comes onto it" payload "$program"
outcome=0
logs=()
for release in "${releases[@]}"; do
  boot "$release" || outcome=1
  logs+=("$target/logs/node-$release.log")
done
rm -f "$machine/payload.disk"
totals "${logs[@]}"
[ $outcome = 0 ]
