# shellcheck shell=bash
# A cgroup of the testbed's own in every hierarchy, which its cgroup namespace then shows as the
# root: whatever containers make lies below it, and goes with it. For cgroup v1, v2 and both.

cgroup_name=$(basename "${testbed:?}")

hierarchies() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }

# controllers FOLDER: the controllers of a v2 cgroup; nothing in v1, or where v1 has them all.
controllers() {
  local names=
  [ ! -f "$1/cgroup.controllers" ] || read -r names <"$1/cgroup.controllers" || true
  printf '%s' "$names"
}

# hand_on FOLDER: give every controller of a v2 cgroup on to its children. Not done to the machine's
# own root: what that hands on is its administrator's (systemd's) choice.
hand_on() {
  local name
  for name in $(controllers "$1"); do echo "+$name" >"$1/cgroup.subtree_control"; done
}

# cgroups_join top|daemon: puts the calling shell into the testbed's cgroups, made where missing.
# A v2 cgroup that hands controllers on may hold no process itself, so those go into a leaf; the
# top is where the cgroup namespace is made.
cgroups_join() {
  local root own file
  for root in $(hierarchies); do
    own=$root/$cgroup_name
    mkdir -p "$own"
    if [ -f "$own/cpuset.cpus" ] && [ -z "$(controllers "$own")" ]; then
      # v1 refuses processes while these are empty, and starts with them empty.
      for file in cpuset.cpus cpuset.mems; do cat "$root/$file" >"$own/$file"; done
    fi
    if [ "$1" = daemon ] && [ -n "$(controllers "$own")" ]; then
      own=$own/daemon
      mkdir -p "$own"
    fi
    echo "$BASHPID" >"$own/cgroup.procs"
  done
}

# In the new cgroup and mount namespaces: mount every hierarchy again, so that its root is ours.
cgroups_remount() {
  local root type options
  awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/self/mounts |
    while read -r root type options; do
      umount "$root"
      # v1's options name the hierarchy; v2 has one only.
      [ "$type" = cgroup ] || options=rw
      mount -t "$type" -o "$options" "$type" "$root"
      hand_on "$root"
    done
}

# Frozen processes of v1 do not die of SIGKILL.
cgroups_thaw() {
  local root state
  for root in $(hierarchies); do
    [ -d "$root/$cgroup_name" ] || continue
    find "$root/$cgroup_name" -name freezer.state | while read -r state; do
      echo THAWED >"$state" 2>/dev/null || true
    done
  done
}

# The processes that are in there now.
cgroups_members() {
  local root
  for root in $(hierarchies); do
    find "$root/$cgroup_name" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done | sort -nu
}

cgroups_remove() {
  local root
  for root in $(hierarchies); do
    [ ! -d "$root/$cgroup_name" ] || find "$root/$cgroup_name" -depth -type d -exec rmdir {} + 2>/dev/null || return 1
  done
}
