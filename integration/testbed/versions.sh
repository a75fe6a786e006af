#!/usr/bin/env bash
# versions.sh: the core of the tests on the older versions that nodes still have, and with the
# sandbox's control socket refused.
. "$(dirname "$0")/lib.sh"

core="start::f start::the delete:: create:: exec:: kill:: service:: events:: terminal:: log::a_log pod:: limits::"

cd "$repo"
export CARGO_TARGET_DIR=$target
results=()

# judge NAME PATH POLICY TESTS: a run of the suite with these tools before all others.
judge() {
  local log=$target/logs/versions-$1.log
  mkdir -p "$target/logs"
  printf '\n==> %s\n' "$1"
  results+=("$log")
  BULKHEAD_TEST_PATH=$2 BULKHEAD_TEST_POLICY=$3 BULKHEAD_TEST_ONLY=$4 \
    cargo test --locked -p integration --test suite 2>&1 | tee "$log" | grep -E '^(test result|suite: |----|integration/|error|  |test .*(FAILED|ignored))' || true
  grep -q '^test result: ok' "$log"
}

status=0
judge containerd-1.7 "$target/tools/containerd-1.7" "" "$core" || status=1
# exec has no seccomp there, which is why it has to be allowed.
judge runsc-20240729 "$target/tools/runsc-20240729" "allow_old_runsc = true" \
  "create::a kill:: events:: exec::a_ exec::the_ exec::kill service:: old::" || status=1
# Each exec has a helper then: what says that there is none is left out.
judge control-by-command "" "runsc = { control = \"command\" }" \
  "${core/exec::/exec::a exec::the exec::kill exec::s exec::three exec::delete}" || status=1
totals "${results[@]}"
exit $status
