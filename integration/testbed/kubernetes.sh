#!/usr/bin/env bash
# kubernetes.sh: the behaviours of a Kubernetes node, on a real API server and a real kubelet.
. "$(dirname "$0")/lib.sh"

cd "$repo"
export CARGO_TARGET_DIR=$target
log=$target/logs/kubernetes.log
status=0
mkdir -p "${log%/*}"
step "building the tests" cargo test --locked -p integration --test kubernetes --no-run
say "==> running the tests of a Kubernetes node"
cargo test --locked -p integration --test kubernetes 2>&1 | tee "$log" || status=1
totals "$log"
exit $status
