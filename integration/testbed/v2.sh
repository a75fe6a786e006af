#!/usr/bin/env bash
# v2.sh: runs the core of the tests on a host with cgroup v2 alone: Debian's kernel in QEMU, emulated
# by TCG, whatever this machine has itself. Everything it needs goes into one initramfs.
. "$(dirname "$0")/lib.sh"

machine=$target/v2
tree=$machine/tree
memory_mib=3072
shim=${BULKHEAD_V2_SHIM:-$dist/containerd-shim-bulkhead-v1}
# A machine that hangs is ended after so many seconds.
limit=${BULKHEAD_V2_LIMIT:-1500}
# What is shown of a cgroup v2 host; each is the beginning of a test's name.
suite=(create::an_unknown_program create::a_rootfs_that create::an_id_that_is_a_prefix
  exec::a_signal_is exec::the_user exec::kill_reaches exec::no_process kill::exit_codes kill::kill_all
  events::a_run events::an_exec events::a_pause events::containerd_restarted events::a_task_that_ends limits:: cgroup:: stats:: nerdctl::outside::stats
  pod::the_containers pod::containers_come pod::a_killed_shim terminal::a_container user::run_and
  faults::sandbox_killed_during_start faults::shim_killed_during_wait)
pods=(life::a_pod_runs_a_container limits:: stats:: faults::a_killed_sentry)

# kernel: downloads Debian's kernel for virtual machines and unpacks it; nothing is installed.
kernel() {
  local package
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
  [ -n "$package" ] || { apt-get update && kernel; return; }
  mkdir -p "$machine/download" "$machine/kernel"
  (cd "$machine/download" && { apt-get download "$package" || { apt-get update && apt-get download "$package"; }; })
  dpkg-deb -x "$machine"/download/"$package"_*.deb "$machine/kernel"
}

# libraries PROGRAM…: what they are linked with, the loader among it.
libraries() {
  ldd "$@" 2>/dev/null | grep -o '/[^ ]*' | grep -v ':$' | sort -u
}

# furnish SUITE PODS: the machine's file system.
furnish() {
  local version program library applet
  version=$(ls "$machine/kernel/lib/modules")
  rm -rf "$tree"
  mkdir -p "$tree"/{bin,dev,etc,lib/modules,proc,root,run,sys,tmp,usr/bin,var/lib,var/log} \
    "$tree"/tests/{tools,images}
  cp "$(type -P busybox)" "$tree/bin/busybox"
  for applet in $("$tree/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
  done
  ln -s ../../bin/busybox "$tree/usr/bin/env"
  cp -aL "$tools"/{containerd,ctr,containerd-shim-runc-v2,runsc,bridge,host-local,loopback} "$tree/tests/tools/"
  cp "$shim" "$tree/tests/tools/"
  cp "$1" "$tree/tests/suite"
  cp "$2" "$tree/tests/pods"
  # Of a debug build, nine parts in ten are line tables.
  strip "$tree/tests/suite" "$tree/tests/pods"
  libraries "$1" "$2" "$shim" | while read -r library; do
    mkdir -p "$tree${library%/*}"
    cp -L "$library" "$tree$library"
  done
  cp "$images"/{busybox,pause}.tar "$tree/tests/images/"
  for program in overlay bridge veth virtio_pci virtio_blk ext4; do
    modprobe -d "$machine/kernel" -S "$version" --show-depends "$program" | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r program; do
    cp "$program" "$tree/lib/modules/"
    printf '%s\n' "${program##*/}" >>"$tree/lib/modules/order"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\n' >"$tree/etc/passwd"
  printf 'root:x:0:\n' >"$tree/etc/group"
  printf '127.0.0.1 localhost\n' >"$tree/etc/hosts"
  touch "$tree/etc/resolv.conf"
  cp "$here/v2-init.sh" "$tree/init"
  printf '%s\n' "${suite[*]}" >"$tree/tests/suite.list"
  printf '%s\n' "${pods[*]}" >"$tree/tests/pods.list"
}

pack() {
  (cd "$tree" && find . -print0 | cpio --null --create --format=newc --quiet) >"$machine/initramfs"
}

# disk: what the machine writes to has to end on a device, or its kernel counts nothing of it.
disk() {
  rm -f "$machine/disk"
  truncate -s 512M "$machine/disk"
  mkfs.ext4 -q -F "$machine/disk"
}

boot() {
  local log=$target/logs/v2.log pid status
  mkdir -p "$target/logs"
  say "==> booting Debian's kernel with cgroup v2 alone (QEMU, TCG); at most $limit s"
  # In the background it must not read the caller's terminal.
  timeout -k 5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory_mib" \
    -nographic -no-reboot -nic none -monitor none -serial stdio \
    -kernel "$machine"/kernel/boot/vmlinuz-* -initrd "$machine/initramfs" \
    -drive "file=$machine/disk,format=raw,if=virtio,cache=unsafe" \
    -append "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic" </dev/null 2>&1 |
    sed -u 's/\r//g' | tee "$log" | grep --line-buffered -E '^(####|test |suite: |pods: |----|note: |panic|error|  |integration/)' || true
  status=$(sed -n 's/^v2: exit status //p' "$log" | tail -n 1)
  [ -n "$status" ] || die "the machine did not finish; its console is in $log"
  totals "$log"
  return "$status"
}

need_machine containerd ctr runsc bridge
cd "$repo"
export CARGO_TARGET_DIR=$target
[ -n "$(ls "$machine"/kernel/boot/vmlinuz-* 2>/dev/null)" ] || {
  step "downloading Debian's kernel (nothing is installed)" kernel
  depmod -b "$machine/kernel" "$(ls "$machine/kernel/lib/modules")"
}
step "building the tests" cargo test --locked -p integration --test suite --test pods --no-run
furnish "$(test_program suite)" "$(test_program pods)"
step "packing the machine's file system" pack
rm -rf "$tree"
step "making the machine's disk" disk
boot
rm -f "$machine/disk"
