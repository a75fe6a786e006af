#!/bin/busybox sh
# shellcheck shell=dash
# The first program of the machine that v2.sh boots: mounts what a host has, with cgroup v2 alone,
# runs the tests, says how they went, and switches off.
export PATH=/bin:/usr/bin

if [ ! -e /switched ]; then
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount -t devtmpfs dev /dev
  while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order
  # The kernel cannot pivot away from an initramfs: all of it moves into a tmpfs.
  mkdir /new
  mount -t tmpfs -o mode=0755 root /new
  for entry in /*; do
    case $entry in
      /dev | /proc | /sys | /new) ;;
      *) cp -a "$entry" /new/ ;;
    esac
  done
  mkdir -p /new/dev /new/proc /new/sys
  touch /new/switched
  for entry in /dev /proc /sys; do mount -o move "$entry" "/new$entry"; done
  exec switch_root /new /init
fi

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
read -r controllers </sys/fs/cgroup/cgroup.controllers
for controller in $controllers; do
  echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
ip link set lo up 2>/dev/null || ifconfig lo up
echo "#### kernel $(uname -r), cgroup v2: $controllers"

mkdir -p /disk
mount -t ext4 /dev/vda /disk && export BULKHEAD_TEST_DISK=/disk
export BULKHEAD_TEST_PATH=/tests/tools BULKHEAD_TEST_IMAGES=/tests/images BULKHEAD_TEST_SLOWNESS=8 HOME=/root
status=0
for program in suite pods; do
  BULKHEAD_TEST_ONLY=$(cat /tests/$program.list) /tests/$program --color never || status=1
done
echo "v2: exit status $status"
poweroff -f
