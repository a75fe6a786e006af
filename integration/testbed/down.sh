#!/usr/bin/env bash
# Ends a testbed: its first process, and by that everything in its pid namespace, then removes its
# cgroups and files. Touches nothing that the testbed did not start. -q: say nothing.
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"

need_root "ending a testbed"
cgroups_thaw
# Killed already, it may be gone between the two: that is what was wanted.
if init=$(testbed_init); then kill -KILL "$init" 2>/dev/null || true; fi
# The kernel takes a moment to end a namespace; its cgroups cannot go before.
deadline=$((SECONDS + 20))
until ! testbed_init >/dev/null && cgroups_remove; do
  [ "$SECONDS" -lt $deadline ] || die "cgroups of the testbed are still in use: $(cgroups_members | tr '\n' ' ')"
  sleep 0.05
done
rm -rf "$testbed" "$store"
rmdir "$target/testbed" 2>/dev/null || true
[ "${1:-}" = -q ] || say "the testbed in $testbed is gone"
