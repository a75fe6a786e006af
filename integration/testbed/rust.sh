#!/usr/bin/env bash
# rust.sh build | test | lint | bench: what make does with cargo, in order and with progress.
. "$(dirname "$0")/lib.sh"

rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
cd "${repo:?}"
# Everything lands in target/, where the testbed looks for it.
export CARGO_TARGET_DIR=$target

command -v cargo >/dev/null ||
  die "cargo is missing: install Rust $rust_needed or newer (https://rustup.rs) and put it on PATH"
have=$(rustc --version | awk '{ print $2 }')
at_least "$have" "$rust_needed" ||
  die "Rust $have is too old: Bulkhead needs $rust_needed or newer (rustup update stable)"

build() {
  step "building Bulkhead (cargo, profile dist)" \
    cargo build --locked --profile dist -p bulkhead-shim
  stat -c '    %n: %s bytes' "$dist/containerd-shim-bulkhead-v1" "$dist/bulkhead"
}

run_tests() {
  local log=$target/logs/test.log status=0
  mkdir -p "$target/logs"
  step "building the tests" cargo test --locked --workspace --no-run
  # The integration tests make namespaces of their own and start their own containerd in there.
  say "==> running the tests"
  cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log" || status=1
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
  step "the plan of CI and the record of what it leaves out" integration/testbed/evidence.py check
  step "what is promised and the tests that hold it" integration/testbed/promises.py
  step "scripts (shellcheck)" shellcheck -x -P SCRIPTDIR .ci/run integration/*/*.sh runsc-config/*/*.sh shim/debian/*
  step "alert rules (promtool)" promtool check rules docs/prometheus/alerts.yml
  step "when they fire (promtool)" promtool test rules docs/prometheus/alerts_test.yml
  # One that PATH has will do; the build takes three minutes.
  PATH=$PATH:$tools
  command -v cargo-deny >/dev/null ||
    step "installing cargo-deny 0.20.2" \
      cargo install --locked --root "$target/tools" --target-dir "$target/cargo-deny" cargo-deny@0.20.2
  step "dependencies (cargo deny)" cargo deny --locked check bans licenses sources
}

bench() {
  # In the profile of the tests, whose build it shares: what it measures are other programs.
  step "building the benches" cargo test --locked -p integration --bench figures --bench files --bench methods --bench pods --bench metrics --no-run
  cargo test --locked -p integration --bench figures --bench files --bench methods --bench pods --bench metrics
}

case ${1:-} in
  build) build ;;
  test) run_tests ;;
  lint) lint ;;
  bench) bench ;;
  *) die "usage: rust.sh build | test | lint | bench" ;;
esac
