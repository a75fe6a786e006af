#!/usr/bin/env bash
# The first process of a testbed, started by launch.sh in namespaces of its own (mount, network, IPC,
# pid, cgroup). Makes the machine look empty around containerd, then keeps it company: when this process
# ends, the kernel ends everything in here with it.
. "$(dirname "$0")/lib.sh"
. "$here/cgroups.sh"

# /proc still is the machine's: this is the number that the outside knows us by.
read -ra stat </proc/self/stat
printf '%s %s\n' "${stat[0]}" "${stat[21]}" >"$testbed/init"
mount -t proc proc /proc
cgroups_remount

# Everything that runtimes keep in /run stays in here; only the testbed's own folder is shared.
mkdir -p "$testbed/run"
mount -t tmpfs -o mode=0755 run "$testbed/run"
mkdir -p "$testbed/run/lock" "$testbed/run/layers"
case $testbed in
  /run/*)
    mkdir -p "$testbed/run${testbed#/run}"
    mount --bind "$testbed" "$testbed/run${testbed#/run}"
    ;;
esac
# -n: mount(8) keeps a table in /run, which is just going away.
mount -n --move "$testbed/run" /run

# /etc and /opt are the machine's with a layer on top: the places where ctr looks for CNI's
# configuration and plugins are fixed, and Bulkhead's policy file is in /etc/bulkhead.
for folder in etc opt; do
  mkdir -p "/run/layers/$folder/upper" "/run/layers/$folder/work"
  mount -t overlay -o "lowerdir=/$folder,upperdir=/run/layers/$folder/upper,workdir=/run/layers/$folder/work" \
    overlay "/$folder"
done
rm -rf /etc/cni /etc/bulkhead /opt/cni
mkdir -p /etc/cni/net.d /etc/bulkhead /opt/cni/bin
ln -s "$tools"/{bridge,host-local,loopback} /opt/cni/bin/
cp "$here/cni.conflist" /etc/cni/net.d/10-testbed.conflist
ip link set lo up
# What a node does for its containers; this namespace leads nowhere else.
echo 1 >/proc/sys/net/ipv4/ip_forward

# A checkout may be anybody's; a runsc that is not root's alone is refused.
install -D -m 0755 "$tools/runsc" /run/layers/bin/runsc

PATH=/run/layers/bin:$dist:$tools:$PATH containerd --config "$testbed/config.toml" >"$testbed/containerd.log" 2>&1 &
echo $! >"$testbed/containerd.pid"

# As the namespace's first process we are parent to every orphan; bash collects them while it waits.
while :; do
  # By no name that a test looks for, as containerd's own do.
  sleep 2147483647 &
  wait $! || true
done
