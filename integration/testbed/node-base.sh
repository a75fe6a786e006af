#!/usr/bin/env bash
# node-base.sh RELEASE: the disk of a node before anything is installed on it: Debian with systemd and its kernel for virtual machines, in
# target/node/RELEASE. It is made once.
. "$(dirname "$0")/lib.sh"

release=$1
base=$target/node/$release
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,e2fsprogs,initramfs-tools,zstd,linux-image-cloud-amd64

[ -e "$base/made" ] && exit 0
rm -rf "$base"
mkdir -p "$base"
mmdebstrap --variant=minbase --include=$packages \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$release" "$base/root"
tree=$base/root
echo node >"$tree/etc/hostname"
printf '%s\n' '127.0.0.1 localhost node' >"$tree/etc/hosts"
printf '%s\n' '/dev/vda / ext4 defaults 0 0' '/dev/vdb /node ext4 ro 0 0' >"$tree/etc/fstab"
mkdir -p "$tree/node"
cat >"$tree/etc/systemd/system/node.service" <<'UNIT'
[Unit]
Description=What this node is for
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/node/run
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
UNIT
mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
# Pulled in by what it waits for, it would be waited for.
cat >"$tree/etc/systemd/system/node.timer" <<'UNIT'
[Timer]
OnBootSec=1
AccuracySec=1
[Install]
WantedBy=timers.target
UNIT
mkdir -p "$tree/etc/systemd/system/timers.target.wants"
ln -s ../node.timer "$tree/etc/systemd/system/timers.target.wants/node.timer"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer systemd-timesyncd.service \
  getty@tty1.service serial-getty@ttyS0.service systemd-networkd-wait-online.service; do
  ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
cp "$tree"/boot/vmlinuz-* "$base/vmlinuz"
cp "$tree"/boot/initrd.img-* "$base/initrd"
truncate -s 3G "$base/disk"
mkfs.ext4 -q -F -d "$tree" "$base/disk"
rm -rf "$tree"
touch "$base/made"
