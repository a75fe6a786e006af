#!/usr/bin/env bash
# versions.sh: the core of the tests on the older versions that nodes still have, and where a
# sandbox refuses the shim at its control socket, so that each method falls back to a command.
. "$(dirname "$0")/lib.sh"

core="start::f start::the delete:: create:: exec:: kill:: service:: events:: terminal:: log::a_log pod:: limits::
  io::std io::null io::output io::a_reader user:: faults::containerd faults::shim"

cd "$repo"
export CARGO_TARGET_DIR=$target
results=()

# judge NAME PROGRAM PATH POLICY TESTS: a run of a test program with these tools before all others.
judge() {
  local program=$2 log=$target/logs/versions-$1.log
  mkdir -p "$target/logs"
  printf '\n==> %s\n' "$1"
  results+=("$log")
  BULKHEAD_TEST_PATH=$3 BULKHEAD_TEST_POLICY=$4 BULKHEAD_TEST_ONLY=$5 \
    cargo test --locked -p integration --test "$program" 2>&1 | tee "$log" | grep -E '^(test result|suite: |pods: |----|integration/|error|  |test .*(FAILED|ignored))' || true
  grep -q '^test result: ok' "$log"
}

status=0
judge containerd-1.7 suite "$target/tools/containerd-1.7" "" "$core" || status=1
judge containerd-1.7-pods pods "$target/tools/containerd-1.7" "" \
  "life:: faults::containerd faults::an_exit limits::a_container" || status=1
# exec has no seccomp there, which is why it has to be allowed.
judge runsc-20240729 suite "$target/tools/runsc-20240729" "allow_old_runsc = true" \
  "start::f create::a kill:: events:: exec::a_ exec::the_ exec::kill exec::std exec::an_unknown service::
  io::stdin io::stdout_and io::stdout_reader terminal::a_container pod::the_containers pod::each old::" || status=1
# Each exec has a helper then: what says that there is none is left out.
refused=$target/tools/refused
mkdir -p "$refused"
sed "s|@REAL@|$tools/runsc|" "$here/refused.sh" >"$refused/runsc"
chmod 755 "$refused/runsc"
judge control-refused suite "$refused" "" \
  "${core/exec::/exec::a exec::the exec::kill exec::s exec::three exec::delete} stats::each" || status=1
totals "${results[@]}"
exit $status
