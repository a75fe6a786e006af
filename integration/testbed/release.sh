#!/usr/bin/env bash
# release.sh check | pack: what a release has, in target/releases/VERSION. `make release` asks `check` before it builds.
. "$(dirname "$0")/lib.sh"

cd "${repo:?}"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
name=bulkhead-$version
out=$target/releases/$version

# A release is a commit: what is not in one is in no release.
check() {
  local changed
  git rev-parse --verify --quiet HEAD >/dev/null || die "a release is made of a commit, and this is no clone"
  changed=$(git status --porcelain)
  [ -z "$changed" ] || die "a release is made of a commit, and this tree has changes:
$changed"
  grep -q "^## $version " CHANGELOG.md || die "CHANGELOG.md has no section \"## $version (DATE)\", the version of Cargo.toml"
  [ -e "docs/releases/$version.md" ] || die "docs/releases/$version.md is missing: the notes of this release"
}

# tarball FOLDER: the same bytes from the same files, whoever packs them, and when.
tarball() {
  tar --create --directory "$out" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --mode='u=rwX,go=rX' --format=ustar "$1" | gzip --no-name -9
}

pack() {
  local folder=$out/$name deb arch
  deb=$(echo "$target"/deb/bulkhead_"$version"-*.deb)
  [ -e "$deb" ] || die "target/deb has no package of $version: make deb"
  arch=$(dpkg-deb --field "$deb" Architecture)
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  rm -rf "$out"
  mkdir -p "$folder"
  # The files of the commit, not those of the folder.
  git archive HEAD README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE docs | tar --extract --directory "$folder"
  cp "$dist/bulkhead" "$dist/containerd-shim-bulkhead-v1" "$target/deb/bulkhead.cdx.json" "$folder/"
  tarball "$name" >"$out/$name-linux-$arch.tar.gz"
  cp "$deb" "$out/"
  cp "$target/deb/bulkhead.cdx.json" "$out/$name.cdx.json"
  cp "docs/releases/$version.md" "$out/$name.md"
  rm -r "$folder"
  (cd "$out" && sha256sum -- * >SHA256SUMS)
  say "Bulkhead $version, of commit $(git rev-parse HEAD), in target/releases/$version:"
  (cd "$out" && stat -c '    %n: %s bytes' -- *)
  say "$(tar --list --gzip --file "$out/$name-linux-$arch.tar.gz" | grep -cv '/$') files are in the tarball; SHA256SUMS has:"
  sed 's/^/    /' "$out/SHA256SUMS"
}

case ${1:-} in
  check) check ;;
  pack) check && pack ;;
  *) die "usage: release.sh check | pack" ;;
esac
