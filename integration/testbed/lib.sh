# shellcheck shell=bash disable=SC2034
# What every script of the testbed shares: where things are, and how a long step is shown.
# (SC2034: the variables are for those who source it.)
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$repo/integration/testbed
target=$repo/target
dist=$target/dist
tools=$target/tools/bin
images=$target/images
# A folder a testbed lives in. It is short because unix socket paths end at 108 bytes.
testbed=${BULKHEAD_TESTBED:-/run/bulkhead-testbed}
# Images, snapshots and layers go to disk; /run is memory on most machines.
store=$target/testbed/$(basename "$testbed")

# Callers may run with HOME unset (CI, containerd); Go refuses to work so.
export HOME=${HOME:-/root}

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() {
  [ "$(id -u)" = 0 ] || die "$1 needs root: it makes namespaces, mounts and cgroups"
}

# need_machine PROGRAM…: what a machine in QEMU is made of; each is one of target/tools.
need_machine() {
  local program
  need_root "making a machine"
  [ "$(uname -m)" = x86_64 ] || die "this machine is made for x86_64; $(uname -m) has no emulation set up"
  for program in "$@"; do
    [ -x "$tools/$program" ] || die "$tools/$program is missing: make tools"
  done
}

# test_program NAME: the file that cargo has built of a test program.
test_program() {
  cargo test --locked -p integration --test "$1" --no-run --message-format=json 2>/dev/null |
    sed -n "s/.*\"executable\":\"\([^\"]*\/$1-[^\"]*\)\".*/\1/p" | tail -n 1
}

# step TEXT COMMAND…: run a long command, its output kept in target/logs, with the seconds it has
# taken so far. Its log is shown when it fails.
step() {
  local what=$1 log start pid
  shift
  mkdir -p "$target/logs"
  log=$target/logs/$(printf '%s' "$what" | tr -cs 'A-Za-z0-9.' '-').log
  start=$SECONDS
  say "==> $what"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  # In the background it does not hear ctrl-C itself.
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  local beat=$((start + 15))
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if [ "$SECONDS" -ge "$beat" ]; then
      say "    … $((SECONDS - start)) s"
      beat=$((SECONDS + 15))
    fi
  done
  if ! wait "$pid"; then
    tail -n 30 "$log" >&2
    die "$what failed after $((SECONDS - start)) s; its whole output is in $log"
  fi
  trap - INT TERM
  say "    done in $((SECONDS - start)) s"
}

# at_least HAVE WANT: versions of dotted numbers, compared as such.
at_least() {
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

go_needed=1.26.6 # the newest that the go.mod files of the tools ask for

# Makes `go` one that can build: PATH's if it is new enough, else Debian's, unpacked in target/tools
# and installed nowhere. From 1.21 on, Go fetches the toolchain that a module asks for as a module,
# checked like any other.
need_go() {
  local have=0 unpacked=$target/tools/go
  if command -v go >/dev/null; then
    have=$(GOTOOLCHAIN=local go env GOVERSION)
    have=${have#go}
  fi
  at_least "$have" $go_needed && return
  export GOTOOLCHAIN=auto
  at_least "$have" 1.21 && return
  if [ ! -x "$unpacked/usr/lib/go-1.24/bin/go" ]; then
    rm -rf "$unpacked"
    step "unpacking Debian's Go 1.24 (for $1; PATH has none that is new enough)" \
      mmdebstrap --variant=extract --include=golang-1.24-go trixie "$unpacked"
  fi
  PATH=$unpacked/usr/lib/go-1.24/bin:$PATH
}

# The first process of the running testbed, as the machine numbers it; fails when there is none.
# The start time tells it from a later process of the same number.
testbed_init() {
  local pid started stat
  read -r pid started 2>/dev/null <"$testbed/init" || return 1
  read -ra stat 2>/dev/null <"/proc/$pid/stat" || return 1
  [ "${stat[21]}" = "$started" ] && printf '%s\n' "$pid"
}

# totals LOG…: repeats why tests failed, so that it stands at the end, and adds up what each test
# program says.
totals() {
  awk '/^---- / { failure = 1 }
    /^failures:|^test result:/ { failure = 0 }
    failure { print }
    /^test result:/ { passed += $4; failed += $6; skipped += $8 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$@"
}

# rust-toolchain.toml names the compiler, and rustup fetches one that it does not have under that name. A `stable` of the same
# version serves as well.
pinned_rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$repo/rust-toolchain.toml")
has_toolchain() { compgen -G "${RUSTUP_HOME:-$HOME/.rustup}/toolchains/$1-*" >/dev/null; }
if [ -z "${RUSTUP_TOOLCHAIN:-}" ] && ! has_toolchain "$pinned_rust" && has_toolchain stable &&
  [ "$(RUSTUP_TOOLCHAIN=stable rustc --version 2>/dev/null | awk '{ print $2 }')" = "$pinned_rust" ]; then
  export RUSTUP_TOOLCHAIN=stable
fi
