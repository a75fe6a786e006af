#!/usr/bin/env bash
# Puts containerd, runsc and the CNI plugins into target/tools/bin: linked from PATH where PATH has
# a good enough one, else built at the pinned version by Go, each by its own module graph and
# checked against Go's checksum database. tools.sh older | kubernetes | conformance | outside | bench: with what those targets need
# beside.
. "$(dirname "$0")/lib.sh"

containerd_version=2.4.2
containerd_module=github.com/containerd/containerd/v2
runsc_release=20260905
runsc_commit=v0.0.0-20260905035102-160fafc42237
runsc_module=gvisor.dev/gvisor
cni_version=1.9.1
cni_module=github.com/containernetworking/plugins

# version NAME PATH: the dotted number that a tool says of itself, empty if it says none.
version() {
  local text
  case $1 in
    containerd | ctr) text=$("$2" --version | awk '{ print $3 }') ;;
    containerd-shim-runc-v2) text=$("$2" -v | awk '$1 == "Version:" { print $2 }') ;;
    runsc) text=$("$2" --version | sed -n 's/^runsc version release-//p') ;;
    *) text=$(CNI_COMMAND='' "$2" --version 2>&1 | sed -n 's/^CNI .* plugin //p' | head -n 1) ;;
  esac
  printf '%s' "$text" | sed -n 's/^v\{0,1\}\([0-9][0-9.]*\).*/\1/p'
}

# good NAME PATH: is this a version that the tests were written for?
good() {
  local have
  [ -x "$2" ] || return 1
  have=$(version "$1" "$2" 2>/dev/null) && [ -n "$have" ] || return 1
  case $1 in
    containerd | ctr | containerd-shim-runc-v2) at_least "$have" 2.4.0 && ! at_least "$have" 3 ;;
    # `features` is how Bulkhead learns what a runsc can enforce.
    runsc) at_least "$have" $runsc_release && "$2" features >/dev/null 2>&1 ;;
    *) at_least "$have" 1.0.0 ;;
  esac
}

# from_path NAME: the first good one outside target/tools.
from_path() {
  local candidate
  while read -r candidate; do
    case $candidate in "$tools"/*) continue ;; esac
    good "$1" "$candidate" && printf '%s\n' "$candidate" && return 0
  done < <(type -aP "$1")
  return 1
}

# A caller's settings could switch the checksum database off; nothing here needs any.
go_env=(GOFLAGS= GONOSUMDB= GOPRIVATE= GOINSECURE= GO111MODULE=on CGO_ENABLED=0)

build() { # NAME PACKAGE@VERSION [LDFLAGS]
  need_go "$1"
  [ "$(go env GOSUMDB)" != off ] || die "GOSUMDB is off: what is built here is checked against Go's checksum database"
  step "building $1 (${2##*@})" env "${go_env[@]}" GOBIN="$tools" \
    go install -trimpath -ldflags "-s -w ${3:-}" "$2"
  good "$1" "$tools/$1" || die "$1 was built from $2 but says version '$(version "$1" "$tools/$1")'"
}

tool() { # NAME PACKAGE@VERSION [LDFLAGS]
  local found
  good "$1" "$tools/$1" && return
  rm -f "$tools/$1"
  if found=$(from_path "$1"); then
    ln -s "$found" "$tools/$1"
    say "$1 $(version "$1" "$found"): using $found"
  else
    build "$@"
  fi
}

mkdir -p "$tools"
for name in containerd ctr containerd-shim-runc-v2; do
  tool $name "$containerd_module/cmd/$name@v$containerd_version" \
    "-X $containerd_module/version.Version=v$containerd_version"
done
# Built without this runsc calls itself VERSION_MISSING.
tool runsc "$runsc_module/runsc@$runsc_commit" \
  "-X $runsc_module/runsc/version.version=release-$runsc_release.0"
for plugin in main/bridge main/loopback ipam/host-local; do
  tool "${plugin#*/}" "$cni_module/plugins/$plugin@v$cni_version" \
    "-X $cni_module/pkg/utils/buildversion.BuildVersion=v$cni_version"
done

# What older nodes have, from Debian's packages, unpacked and installed nowhere.
older() {
  local unpacked=$target/tools/debian
  if [ ! -x "$target/tools/runsc-20240729/runsc" ] || [ ! -x "$target/tools/containerd-1.7/containerd" ]; then
    rm -rf "$unpacked"
    step "unpacking Debian's containerd 1.7 and runsc 20240729" \
      mmdebstrap --variant=extract --include=containerd,runsc trixie "$unpacked"
    mkdir -p "$target/tools/containerd-1.7" "$target/tools/runsc-20240729"
    cp "$unpacked"/usr/bin/{containerd,ctr,containerd-shim-runc-v2} "$target/tools/containerd-1.7/"
    cp "$unpacked/usr/bin/runsc" "$target/tools/runsc-20240729/"
    rm -rf "$unpacked"
    case $("$target/tools/containerd-1.7/containerd" --version) in
      *" 1.7."*) ;;
      *) die "Debian's containerd is no 1.7 any more: its tests need another source" ;;
    esac
  fi
  # By a name of its own, for what is tested beside the current one.
  ln -sf ../runsc-20240729/runsc "$tools/old-runsc"
}

# What a Kubernetes node is made of. The build takes a quarter of an hour on two cores, so what was
# built from the same sources by the same Go is kept for other checkouts, in the user's cache.
kubernetes() {
  local module=$repo/integration/kubernetes into=$target/tools/kubernetes flags built key cache
  local programs=(kube-apiserver kube-controller-manager kubectl kubelet) packages=()
  local version
  version=$(sed -n 's|^require k8s.io/kubernetes v||p' "$module/go.mod")
  # Without these the programs say that they are v0.0.0, and kubelet and server do not fit together.
  local name=k8s.io/component-base/version
  flags="-s -w -X $name.gitVersion=v$version -X $name.gitMajor=1 -X $name.gitMinor=$(cut -d. -f2 <<<"$version")"
  need_go kubelet
  key=$({ cat "$module"/go.{mod,sum}; printf '%s\n' "$flags" "${programs[@]}"; go env GOVERSION GOARCH; } | sha256sum | cut -c-16)
  [ "$(cat "$into/built" 2>/dev/null)" != "$key" ] || return 0
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead/kubernetes-$key
  mkdir -p "$into"
  if (cd "$cache" 2>/dev/null && sha256sum --check --status SHA256SUMS); then
    say "Kubernetes $version: as built before, in $cache"
    cp -l "$cache"/kube* "$into/" 2>/dev/null || cp "$cache"/kube* "$into/"
  else
    packages=("${programs[@]/#/k8s.io/kubernetes/cmd/}")
    step "building Kubernetes $version (${programs[*]}; a quarter of an hour on two cores)" \
      env -C "$module" "${go_env[@]}" GOBIN="$into" go install -mod=readonly -trimpath -ldflags "$flags" "${packages[@]}"
    # A cache that cannot be written is none.
    if mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; then
      rm -rf "${cache%/*}"/kubernetes-*.half "$cache"
      mkdir "$cache.half"
      cp "${programs[@]/#/$into/}" "$cache.half/"
      (cd "$cache.half" && sha256sum "${programs[@]}" >SHA256SUMS)
      mv "$cache.half" "$cache"
    fi
  fi
  built=$("$into/kubelet" --version)
  [ "$built" = "Kubernetes v$version" ] || die "kubelet $version was built but says '$built'"
  printf '%s\n' "$key" >"$into/built"
}

# etcd comes from Debian's packages: built from source it is as large as all of the above.
etcd() {
  local unpacked=$target/tools/debian
  [ -x "$target/tools/kubernetes/etcd" ] && return
  rm -rf "$unpacked"
  step "unpacking Debian's etcd" mmdebstrap --variant=extract --include=etcd-server trixie "$unpacked"
  mkdir -p "$target/tools/kubernetes"
  cp "$unpacked/usr/bin/etcd" "$target/tools/kubernetes/"
  rm -rf "$unpacked"
}

# The CRI's conformance suite is a test program, so it is built from a module that requires it.
critest() {
  local module=$repo/integration/critest package=sigs.k8s.io/cri-tools program=$tools/critest version
  version=$(sed -n "s|^require $package v||p" "$module/go.mod")
  says() { "$program" -version 2>/dev/null | sed -n 's/^critest version: //p'; }
  [ "$(says)" != "$version" ] || return 0
  need_go critest
  step "building critest ($version)" env -C "$module" "${go_env[@]}" go test -c -mod=readonly -trimpath \
    -ldflags "-s -w -X $package/pkg/version.Version=$version" -o "$program" "$package/cmd/critest"
  [ "$(says)" = "$version" ] || die "critest $version was built but says '$(says)'"
}

# containerd's own tests are programs of its module. Each is built where Go keeps that, with the checksums that the module itself has
# of what it needs, and looks for files beside its sources.
outside() {
  local into=$target/tools/outside module=$containerd_module@v$containerd_version folder suite built path
  local -A suites=([client]=integration/client [cri]=integration)
  need_go "containerd's tests"
  built="$module $(go env GOVERSION)"
  folder=$(env "${go_env[@]}" go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  [ -d "$folder" ] || die "Go has no folder of $module: $folder"
  mkdir -p "$into"
  for suite in "${!suites[@]}"; do
    path=$folder/${suites[$suite]}
    ln -sfn "$path" "$into/$suite"
    [ ! -x "$into/$suite.test" ] || [ "$(cat "$into/$suite.built" 2>/dev/null)" != "$built" ] || continue
    # Some of what they import is C.
    step "building containerd's tests, $suite ($containerd_version)" env -C "$path" "${go_env[@]}" CGO_ENABLED=1 \
      go test -c -mod=readonly -trimpath -o "$into/$suite.test" .
    printf '%s\n' "$built" >"$into/$suite.built"
  done
}

# gVisor's own shim is only measured beside Bulkhead. Its package is called shim, so it is renamed.
stock() {
  [ -x "$tools/containerd-shim-runsc-v1" ] && return
  need_go containerd-shim-runsc-v1
  step "building containerd-shim-runsc-v1 ($runsc_commit)" env "${go_env[@]}" \
    GOBIN="$target/tools/stock" go install -trimpath -ldflags "-s -w" "$runsc_module/shim@$runsc_commit"
  mv "$target/tools/stock/shim" "$tools/containerd-shim-runsc-v1"
}

# What only some targets need.
case ${1:-} in
  older) older ;;
  kubernetes)
    older
    kubernetes
    etcd
    ;;
  conformance)
    tool portmap "$cni_module/plugins/meta/portmap@v$cni_version" \
      "-X $cni_module/pkg/utils/buildversion.BuildVersion=v$cni_version"
    critest
    ;;
  outside) outside ;;
  bench) stock ;;
esac
