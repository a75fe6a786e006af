#!/usr/bin/env bash
# leaves.sh: a testbed that is ended with a container still running leaves nothing of either.
export BULKHEAD_TESTBED=/run/bulkhead-leaves
. "$(dirname "$0")/lib.sh"

# Everything that could stay: files of /run, mounts, cgroups, processes of the testbed, its folder on disk.
look() {
  find /run -xdev 2>/dev/null
  awk '{ print "mount", $5 }' /proc/self/mountinfo
  find /sys/fs/cgroup -type d 2>/dev/null
  grep -lazE 'bulkhead-leaves|runsc-(sandbox|gofer)' /proc/[0-9]*/cmdline 2>/dev/null || true
  find "$target/testbed" 2>/dev/null || true
}

say "==> does a testbed leave anything?"
log=$target/logs/leaves.log
before=$(look | sort)
"$here/up.sh" -q
"$here/enter.sh" ctr run -d --runtime io.containerd.bulkhead.v1 bulkhead.test/busybox:latest left sleep 1000
"$here/down.sh" -q
left=$(comm -13 <(printf '%s\n' "$before") <(look | sort))
if [ -n "$left" ]; then
  printf -- '---- make testbed-down leaves:\n%s\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n' "$left" | tee "$log"
  exit 1
fi
printf 'test testbed_down_leaves_nothing ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n' | tee "$log"
