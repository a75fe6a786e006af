#!/usr/bin/env bash
# Started by up.sh in the testbed's cgroups and in a cgroup namespace that has them as its root:
# moves on to where processes may be, then makes the other namespaces.
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"

cgroups_join daemon
exec unshare --mount --net --ipc --pid --fork "$here/inside.sh"
