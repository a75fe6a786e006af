#!/usr/bin/env bash
# Starts a private containerd with the tests' images, in namespaces and cgroups of its own.
# BULKHEAD_TESTBED names its folder, so that several can run side by side; BULKHEAD_TESTBED_CONFIG a file of further tables
# for containerd's configuration, and BULKHEAD_TESTBED_CRI has lines for the table of its CRI plugin. -q: do not print its use.
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"

usage() {
  cat <<USAGE
The testbed is up in $testbed (first process $(testbed_init)). As root:

  $here/enter.sh ctr run --rm --runtime io.containerd.bulkhead.v1 bulkhead.test/busybox:latest hello dmesg
  $here/enter.sh ctr run --rm --runtime io.containerd.runc.v2 --cni bulkhead.test/busybox:latest hello ip addr
  $here/enter.sh bash        # a shell in there; PATH has ctr, runsc and bulkhead

or from outside of its namespaces (no --cni there):

  $tools/ctr -a $testbed/containerd.sock run --rm --fifo-dir $testbed/fifo --runtime io.containerd.bulkhead.v1 bulkhead.test/busybox:latest hello dmesg

Images: bulkhead.test/busybox:latest, bulkhead.test/python:latest. Its log: $testbed/containerd.log
End it: BULKHEAD_TESTBED=$testbed $here/down.sh, or make testbed-down
USAGE
}

need_root "a testbed"
[ ${#testbed} -le 60 ] || die "$testbed is too long a name: sockets below it may have 108 bytes"
if testbed_init >/dev/null; then
  [ "${1:-}" = -q ] || usage
  exit 0
fi
for file in "$tools/containerd" "$tools/runsc" "$images/busybox.tar" "$images/python.tar"; do
  [ -e "$file" ] || die "$file is missing: make tools images"
done
[ -x "$dist/containerd-shim-bulkhead-v1" ] || say "note: Bulkhead is not in target/dist (make build): only runc will work"

# What a testbed that was killed left behind.
"$here/down.sh" -q
mkdir -p "$testbed/fifo" "$store"
chmod 0711 "$testbed"

# Written here, not kept in a file: every path in it depends on where the testbed is.
cat >"$testbed/config.toml" <<CONFIG
version = 3
root = "$store"
state = "$testbed/state"

[grpc]
  address = "$testbed/containerd.sock"

[plugins.'io.containerd.nri.v1.nri']
  disable = true

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE nobody may lower it.
  restrict_oom_score_adj = true
${BULKHEAD_TESTBED_CRI:-}

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bulkhead]
    runtime_type = "io.containerd.bulkhead.v1"
    pod_annotations = ["dev.bulkhead.*"]
CONFIG
[ -z "${BULKHEAD_TESTBED_CONFIG:-}" ] || cat "$BULKHEAD_TESTBED_CONFIG" >>"$testbed/config.toml"

say "==> starting containerd $("$tools/containerd" --version | awk '{ print $3 }') in $testbed"
(
  cgroups_join top
  exec setsid unshare --cgroup "$here/launch.sh"
) >"$testbed/log" 2>&1 </dev/null &

ready() { "$here/enter.sh" ctr version >/dev/null 2>&1; }
deadline=$((SECONDS + 30))
until testbed_init >/dev/null && ready; do
  if [ "$SECONDS" -ge $deadline ]; then
    tail -n 20 "$testbed/log" "$testbed/containerd.log" >&2 || true
    "$here/down.sh" -q
    die "containerd did not answer within 30 s"
  fi
  sleep 0.1
done
for image in busybox python; do
  "$here/enter.sh" ctr image import --digests=false "$images/$image.tar" >"$testbed/import.log" 2>&1 || {
    cat "$testbed/import.log" >&2
    die "importing $images/$image.tar failed"
  }
done
[ "${1:-}" = -q ] || usage
