#!/usr/bin/env bash
# soak.sh: everything at once on busy CPUs while containerd is restarted and killed, then 2,000 execs in one container and 1,000 restarts
# of a bad command in one pod. SOAK_SECONDS says how long that is to take, 20 minutes where it is unset; the numbers go by it.
. "$(dirname "$0")/lib.sh"

cd "${repo:?}"
export CARGO_TARGET_DIR=$target
export SOAK_COUNTS=$target/logs/soak.counts SOAK_SECONDS=${SOAK_SECONDS:-1200}
log=$target/logs/soak.log status=0
mkdir -p "$target/logs"
rm -f "$SOAK_COUNTS"
step "building the tests" cargo test --locked -p integration --test soak --no-run
say "==> soaking for about $SOAK_SECONDS s"
BULKHEAD_TEST_LOG=$target/logs/soak-containerd.log cargo test --locked -p integration --test soak 2>&1 | tee "$log" || status=1
# Its own closing line, with what was counted.
say "$(sed -n 's/^soak: //p' "$log"): $(paste -sd '|' "$SOAK_COUNTS" | sed 's/|/; /g')"
exit $status
