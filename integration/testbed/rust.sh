#!/usr/bin/env bash
# rust.sh build | check | test | lint | bench: what make does with cargo, in order and with progress.
. "$(dirname "$0")/lib.sh"

rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
cd "${repo:?}"
# The packages with unit tests that need no testbed. Those of runsc-config touch nothing that root has.
of_host=(-p bulkhead-node -p bulkhead-shim -p bulkhead-tool)
own=(-p runsc-config "${of_host[@]}")
# Everything lands in target/, where the testbed looks for it.
export CARGO_TARGET_DIR=$target

command -v cargo >/dev/null ||
  die "cargo is missing: install Rust $rust_needed or newer (https://rustup.rs) and put it on PATH"
# rustup would fetch it at the first call of cargo, and say nothing for a minute.
if command -v rustup >/dev/null && [ -z "${RUSTUP_TOOLCHAIN:-}" ] && ! has_toolchain "$pinned_rust"; then
  step "installing Rust $pinned_rust, which rust-toolchain.toml names (rustup)" \
    rustup toolchain install "$pinned_rust" --profile minimal --component clippy --component rustfmt
fi
have=$(rustc --version | awk '{ print $2 }')
at_least "$have" "$rust_needed" ||
  die "Rust $have is too old: Bulkhead needs $rust_needed or newer (rustup toolchain install $pinned_rust)"

build() {
  # No path of this machine is in the programs: two clones of one commit build the same bytes.
  local flags=(--remap-path-prefix="$repo=/bulkhead" --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo")
  step "building Bulkhead (cargo, profile dist)" \
    env CARGO_ENCODED_RUSTFLAGS="$(IFS=$'\x1f' && printf '%s' "${flags[*]}")" \
    cargo build --locked --profile dist -p bulkhead-shim -p bulkhead-tool
  stat -c '    %n: %s bytes' "$dist/containerd-shim-bulkhead-v1" "$dist/bulkhead"
}

units() { # the unit tests, and how many of them say that they need root
  local log=$target/logs/the-unit-tests.log rootless
  step "the unit tests" cargo test --locked "${own[@]}" --no-fail-fast
  totals "$log"
  rootless=$(grep -c '^needs root, not run: ' "$log" || true)
  [ "$rootless" = 0 ] || say "$rootless of them need root and looked at nothing: sudo make check, or make test"
}

# What a contributor runs after each change: no root, no network, under 3 minutes once built.
check() {
  step "formatting (cargo fmt)" cargo fmt --all --check
  step "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
  step "the agreements of papers and tests" papers
  if command -v shellcheck >/dev/null; then step "scripts (shellcheck)" scripts; fi
  step "building the unit tests" cargo test --locked "${own[@]}" --no-run
  units
}

papers() {
  integration/testbed/evidence.py check && integration/testbed/promises.py && integration/testbed/papers.py &&
    integration/testbed/house.py walls && integration/testbed/house.py map --check &&
    runsc-config/tests/mutants.py check
}

scripts() {
  shellcheck -x -P SCRIPTDIR .ci/run integration/*/*.sh runsc-config/*/*.sh shim/debian/*
}

# The unit tests as a user who is not root, as `make check` runs for most. Other users may not reach a folder in a home.
units_without_root() {
  local nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
  if [ "$(id -u)" != 0 ] || ! "${nobody[@]}" test -r "$repo/shim/Cargo.toml"; then
    say "==> the unit tests are not run as another user: this is not root, or others cannot read $repo"
    return
  fi
  local list=$target/logs/units.list
  cargo test --locked "${of_host[@]}" --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/deps\/[^"]*\)".*/\1/p' >"$list"
  [ -s "$list" ] || die "cargo names no unit tests"
  step "the unit tests without root" without_root "$list" "${nobody[@]}"
}

without_root() { # LIST COMMAND…
  local list=$1 program
  shift
  cd "$repo/shim"
  while read -r program; do "$@" env HOME=/tmp "$program" </dev/null || return 1; done <"$list"
}

run_tests() {
  local log=$target/logs/test.log status=0
  mkdir -p "$target/logs"
  step "building the tests" cargo test --locked --workspace --no-run
  # The integration tests make namespaces of their own and start their own containerd in there.
  say "==> running the tests"
  cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
  (units_without_root) || status=1
  totals "$log"
  return $status
}

lint() {
  step "formatting (cargo fmt)" cargo fmt --all --check
  step "formatting of the fuzz targets" cargo fmt --manifest-path runsc-config/fuzz/Cargo.toml --check
  # A workspace of its own, whose lock no build of the others reads.
  step "the fuzz targets' lock (cargo metadata)" \
    cargo metadata --manifest-path runsc-config/fuzz/Cargo.toml --locked --format-version 1
  step "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
  step "documentation" env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked
  step "the agreements of papers and tests" papers
  step "scripts (shellcheck)" scripts
  step "alert rules (promtool)" promtool check rules docs/prometheus/alerts.yml
  step "when they fire (promtool)" promtool test rules docs/prometheus/alerts_test.yml
  # One that PATH has will do; the build takes three minutes.
  PATH=$PATH:$tools
  command -v cargo-deny >/dev/null ||
    step "installing cargo-deny 0.20.2" \
      cargo install --locked --root "$target/tools" --target-dir "$target/cargo-deny" cargo-deny@0.20.2
  step "dependencies (cargo deny)" cargo deny --locked check bans licenses sources
}

# BENCH_ONLY="work methods": these alone. BENCH_RUNS: how often a time is measured. Tables go to target/bench as Markdown, too.
bench() {
  local all=(figures methods pods work metrics) wanted name
  local -a flags=()
  read -ra wanted <<<"${BENCH_ONLY:-${all[*]}}"
  for name in "${wanted[@]}"; do
    [[ " ${all[*]} " == *" $name "* ]] || die "there is no bench $name: ${all[*]}"
    flags+=(--bench "$name")
  done
  # In the profile of the tests, whose build it shares: what it measures are other programs.
  step "building the benches" cargo test --locked -p integration "${flags[@]}" --no-run
  cargo test --locked -p integration "${flags[@]}"
}

case ${1:-} in
  build) build ;;
  check) check ;;
  test) run_tests ;;
  lint) lint ;;
  bench) bench ;;
  *) die "usage: rust.sh build | check | test | lint | bench" ;;
esac
