#!/usr/bin/env bash
# judges.sh: stress-ng by classes and CPython's own test suite, inside of Bulkhead under docs/policies/compat.toml and of runc side by
# side, on the same node. What passes on runc and not on Bulkhead is held to docs/compatibility.md. JUDGES_STRESS and JUDGES_CPYTHON
# name the cases to run, all where they are unset, none where they are "-"; JUDGES_LIMIT the seconds that a case may take; JUDGES_RESULTS the
# folder of what they say.
export BULKHEAD_TESTBED=${BULKHEAD_TESTBED:-/run/bulkhead-judges}
. "$(dirname "$0")/lib.sh"

results=${JUDGES_RESULTS:-$target/judges}
image=bulkhead.test/judges:latest
limit=${JUDGES_LIMIT:-60}

# judge RUNTIME JUDGE USER NAMES [FLAG…]: runs the cases of one judge, each with its line.
judge() {
  local runtime=$1 judge=$2 user=$3 names=()
  [ "$4" != - ] || return 0
  read -ra names <<<"$4"
  "$here/enter.sh" ctr run --rm --fifo-dir "$testbed/fifo" --runtime "$runtime" --user "$user" --memory-limit 1073741824 --cpus 1 \
    "${@:5}" "$image" "$judge-${runtime//./-}" python3 -I -c "$(cat "$here/judges_inside.py")" "$judge" "$limit" "${names[@]}"
}

# both RUNTIME [FLAG…]: both judges, one after the other.
both() {
  judge "$1" stress-ng 0 "${JUDGES_STRESS:-}" "${@:2}"
  judge "$1" cpython 1000 "${JUDGES_CPYTHON:-}" "${@:2}"
}

finish() {
  cp "$testbed"/*.log "$results/" 2>/dev/null || true
  "$here/down.sh" -q
}

need_root "a node of its own"
cd "${repo:?}"
"$here/down.sh" -q
rm -rf "$results"
mkdir -p "$results"
trap finish EXIT
"$here/up.sh" -q
"$here/enter.sh" install -m 0644 "$repo/docs/policies/compat.toml" /etc/bulkhead/compat.toml
step "importing the image" "$here/enter.sh" ctr image import --digests=false "$images/judges.tar"
say "==> the judges, on runc and on Bulkhead side by side; their words are in $results"
both io.containerd.runc.v2 >"$results/runc.txt" 2>"$results/runc.err" &
runc=$!
both io.containerd.bulkhead.v1 --runtime-config-path /etc/bulkhead/compat.toml >"$results/bulkhead.txt" 2>"$results/bulkhead.err" || true
wait $runc || true
python3 -I "$here/judges.py" compare docs/compatibility.md "$results/runc.txt" "$results/bulkhead.txt"
