#!/usr/bin/env bash
# Runs a command inside the running testbed: its namespaces, its cgroups, its containerd.
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"

[ $# -gt 0 ] || die "usage: enter.sh COMMAND [ARGUMENT…]"
need_root "entering a testbed"
init=$(testbed_init) || die "no testbed runs in $testbed: make testbed"
cgroups_join daemon
# env -C, since the folder has to be looked up in there: nsenter would stay in the one outside.
exec nsenter --target "$init" --mount --net --ipc --pid --cgroup -- \
  env -C "$PWD" PATH="/run/layers/bin:$dist:$tools:$PATH" CONTAINERD_ADDRESS="$testbed/containerd.sock" \
  BULKHEAD_TESTBED="$testbed" CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=true "$@"
