#!/usr/bin/env bash
# deb.sh [--try]: the Debian package of what `make build` has built, with a list of what it is made of (CycloneDX) and checksums,
# in target/deb. Then it is installed, upgraded and removed in a private root.
. "$(dirname "$0")/lib.sh"

out=$target/deb
cargo_deb=3.8.0
cargo_cyclonedx=0.5.9
cd "${repo:?}"
PATH=$PATH:$tools

# A cargo command of an exact version: another one would make another package.
need() { # NAME VERSION
  "$1" "${1#cargo-}" --version 2>/dev/null | grep -qw "$2" && return
  step "installing $1 $2" \
    cargo install --locked --root "$target/tools" --target-dir "$target/$1" "$1@$2"
}

# Written beside each Cargo.toml, so it is made in a copy.
bill_of_materials() {
  local copy=$out/source
  rm -rf "$copy"
  mkdir -p "$copy"
  cp -r Cargo.toml Cargo.lock shim runsc-config integration docs "$copy/"
  # The host's triple alone: what a dependency would need elsewhere is not in these binaries.
  step "listing what the binaries are made of (cargo cyclonedx)" \
    cargo cyclonedx --manifest-path "$copy/Cargo.toml" --format json --spec-version 1.5 \
    --no-build-deps --override-filename bulkhead.cdx
  # Whose folder it was made in is nobody's business.
  integration/testbed/bill.py "$copy/shim/bulkhead.cdx.json" "$copy/shim/tool/bulkhead.cdx.json" |
    sed "s#file://$copy#file:///bulkhead#g" >"$out/bulkhead.cdx.json"
  rm -rf "$copy"
}

build() {
  rm -rf "$out"
  mkdir -p "$out"
  need cargo-deb $cargo_deb
  need cargo-cyclonedx $cargo_cyclonedx
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
  export SOURCE_DATE_EPOCH
  bill_of_materials
  step "packing (cargo deb)" cargo deb --locked --no-build --no-strip -p bulkhead-shim --profile dist --output "$out"
  (cd "$out" && sha256sum -- *.deb *.json >SHA256SUMS)
  (cd "$out" && stat -c '    target/deb/%n: %s bytes' -- *)
}

# Maintainer scripts are run with DPKG_ROOT instead of in the root, which has no shell.
in_root() { dpkg --root="$root" --force-script-chrootless --force-depends --force-not-root "$@" >"$out/dpkg.log" 2>&1 ||
  { cat "$out/dpkg.log" >&2; return 1; }; }

expect() { # WHAT COMMAND…
  local what=$1
  shift
  "$@" || die "the package: $what"
}

# older DEB: the same package as an earlier version of it, with another shim.
older() {
  local tree=$out/older
  rm -rf "$tree"
  dpkg-deb --raw-extract "$1" "$tree"
  sed -i 's/^Version: .*/Version: 0.0.0/' "$tree/DEBIAN/control"
  echo older >"$tree/usr/bin/containerd-shim-bulkhead-v1"
  dpkg-deb --root-owner-group -Znone --build "$tree" "$out/older" >/dev/null
}

try() {
  local deb root config sandbox
  deb=$(echo "$out"/bulkhead_*.deb)
  root=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$root'" EXIT
  (cd "$out" && sha256sum --check --quiet SHA256SUMS) || die "the checksums"
  mkdir -p "$root"/var/lib/dpkg/{info,updates,triggers} "$root/etc/containerd"
  touch "$root"/var/lib/dpkg/{status,available}
  config=$root/etc/containerd/config.toml
  printf '# Mine.\nversion = 3\n' >"$config"
  older "$deb"
  in_root --install "$out"/older/*.deb
  for file in usr/bin/bulkhead usr/bin/containerd-shim-bulkhead-v1 etc/bulkhead/config.toml etc/bulkhead/network.toml \
    usr/share/doc/bulkhead/{copyright,policy.md,install.md,bulkhead.cdx.json} \
    usr/share/doc/bulkhead/kubernetes/{runtimeclass,daemonset}.yaml; do
    expect "$file is in it" test -f "$root/$file"
  done
  expect "apt search shows what it is" grep -q '^Description: .*gVisor' <(dpkg-deb --field "$deb")
  expect "it says how to go on" grep -q 'for Kubernetes: bulkhead install' "$out/dpkg.log"
  expect "policies are conffiles" test "$(dpkg --root="$root" -s bulkhead 2>/dev/null | grep -c ' /etc/bulkhead/')" = 2
  "$root/usr/bin/bulkhead" install --without binaries --root "$root" >"$out/install.log"
  expect "containerd imports the handlers" grep -q 'conf.d/bulkhead' "$config"
  expect "the policy is dpkg's" sh -c "! grep -q '^put .*/etc/bulkhead/config.toml' '$out/install.log'"
  # An administrator's policy lives through an upgrade and a removal, and goes with a purge.
  echo 'network = "sandbox"' >>"$root/etc/bulkhead/config.toml"
  rm "$root/etc/containerd/conf.d/bulkhead.toml"
  expect "the older shim is there" grep -q older "$root/usr/bin/containerd-shim-bulkhead-v1"
  in_root --install "$deb"
  expect "the shim is the one that was built" cmp "$dist/containerd-shim-bulkhead-v1" "$root/usr/bin/containerd-shim-bulkhead-v1"
  expect "the policy stays" grep -q '^network' "$root/etc/bulkhead/config.toml"
  expect "the handlers are renewed" test -f "$root/etc/containerd/conf.d/bulkhead.toml"
  # Handlers or none: a sandbox that runs keeps the package.
  sandbox=$root/run/bulkhead/0123456789abcdef
  mkdir -p "$sandbox"
  echo '{}' >"$sandbox/bulkhead.json"
  "$root/usr/bin/bulkhead" uninstall --force --root "$root" >"$out/install.log"
  expect "it is not removed while a sandbox runs" sh -c "! dpkg --root='$root' --force-script-chrootless --force-depends \
    --force-not-root --remove bulkhead >'$out/dpkg.log' 2>&1"
  expect "it says why" grep -q '1 sandbox runs' "$out/dpkg.log"
  expect "the shim is there" test -e "$root/usr/bin/containerd-shim-bulkhead-v1"
  rm -r "$root/run/bulkhead"
  "$root/usr/bin/bulkhead" install --without binaries --root "$root" >"$out/install.log"
  in_root --remove bulkhead
  expect "containerd's file is as it was" test "$(cat "$config")" = "$(printf '# Mine.\nversion = 3')"
  expect "the shim is gone" test ! -e "$root/usr/bin/containerd-shim-bulkhead-v1"
  expect "the policy stays" grep -q '^network' "$root/etc/bulkhead/config.toml"
  in_root --purge bulkhead
  expect "nothing of it stays" test -z "$(find "$root" -name '*bulkhead*' -not -path '*/var/lib/dpkg/*')"
  rm -rf "$out"/{dpkg,install}.log "$out/older"
  say "    installed, upgraded, removed and purged in a private root"
}

case ${1:-} in
  '') build && try ;;
  --try) try ;;
  *) die "usage: deb.sh [--try]" ;;
esac
