#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, and names them. Does nothing, and
# asks no server, when all of them are there.
. "$(dirname "$0")/lib.sh"

packages=(
  ca-certificates          # cargo, go and apt talk https
  gcc libc6-dev            # the linker that cargo calls
  protobuf-compiler        # the tests' client of containerd's API is generated
  libprotobuf-dev          # the well-known types that it imports
  runc                     # the runtime that Bulkhead is compared with
  procps                   # ps, which nerdctl runs
  iproute2                 # links and addresses of the testbed's own network
  mmdebstrap               # makes the images from Debian packages
  debian-archive-keyring   # what those packages are verified with
  python3                  # the demo's plain process; writes the image archives
  shellcheck               # make lint
)

# `make check` makes no testbed, so it needs these alone.
if [ "${1:-}" = check ]; then
  packages=(gcc libc6-dev protobuf-compiler libprotobuf-dev python3 shellcheck)
fi

# What only one target needs.
if [ "${1:-}" = v2 ]; then
  packages+=(
    qemu-system-x86        # the machine that has cgroup v2
    cpio                   # packs its file system
    e2fsprogs              # makes its disk
    kmod                   # finds the kernel's modules in their order
    busybox-static         # its userland
  )
fi

if [ "${1:-}" = test ]; then
  packages+=(
    prometheus             # scrapes in a test; promtool checks the alert rules
    python3-prometheus-client # another reader of the text
    openssl                # certificates
  )
fi

if [ "${1:-}" = conformance ]; then
  packages+=(
    nftables               # how the CNI plugin portmap maps a port of the host
    util-linux             # ipcmk, which a spec runs on the host
  )
fi

if [ "${1:-}" = outside ]; then
  packages+=(
    openssl                # the certificate of the registry
    lsof                   # shows the tests what a shim has open
    criu                   # the tests leave checkpoints out without it
  )
fi

if [ "${1:-}" = fuzz ]; then
  packages+=(g++)          # libFuzzer
fi

command -v dpkg-query >/dev/null || {
  say "This is not a Debian system; install by hand the likes of: ${packages[*]}"
  exit 0
}

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

[ "$(id -u)" = 0 ] || die "these Debian packages are missing, and only root can install them: apt-get install ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y --no-install-recommends "${missing[@]}")
# The package lists of a new machine are empty, those of an old one name files that are gone.
if ! apt-get install -y --no-install-recommends --simulate "${missing[@]}" >/dev/null 2>&1; then
  step "reading Debian's package lists" apt-get update
fi
step "installing Debian packages: ${missing[*]}" bash -c '"$@" || { apt-get update && "$@"; }' - "${install[@]}"
