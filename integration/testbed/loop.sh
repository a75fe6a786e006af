#!/usr/bin/env bash
# loop.sh: 2,000 execs by ctr, four at a time in eight containers, a third of them with the CPUs busy; and clients that open
# each FIFO 0, 0.5, 3 and 9 s after the exit. Five times on a containerd of its own; counts how many hung.
. "$(dirname "$0")/lib.sh"

cd "${repo:?}"
export CARGO_TARGET_DIR=$target
log=$target/logs/loop.log counts=$target/logs/loop.counts status=0
mkdir -p "$target/logs"
rm -f "$counts"
step "building the tests" cargo test --locked -p integration --test suite --no-run
for go in 1 2 3 4 5; do
  say "==> $go of 5"
  # Each round of the suite is 100 execs.
  BULKHEAD_TEST_ROUNDS=4 BULKHEAD_LOOP_COUNTS=$counts \
    BULKHEAD_TEST_ONLY="streams::execs_by_ctr_never streams::a_client_that_opens" \
    cargo test --locked -p integration --test suite 2>&1 | tee "$log" | grep -E '^(test |suite: |----|integration/|error)' || true
  grep -q '^test result: ok' "$log" || status=1
done
awk '{ hung = $NF; count = $(NF - 1); $NF = $(NF - 1) = ""; sub(/ +$/, ""); all[$0] += count; lost[$0] += hung }
  END { for (what in all) line = line (line ? "; " : "") all[what] " " what ": " lost[what] " hung"; print line }' "$counts"
exit $status
