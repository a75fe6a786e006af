#!/usr/bin/env bash
# make demo: one hostile program as a plain process, on runc and on Bulkhead, in a testbed of its own.
export BULKHEAD_TESTBED=/run/bulkhead-demo
. "$(dirname "$0")/../testbed/lib.sh"

trap '"$here/down.sh" -q' EXIT
"$here/down.sh" -q
"$here/up.sh" -q
# The address where clouds keep credentials, in the testbed's own network only.
"$here/enter.sh" ip address add 169.254.169.254/32 dev lo
"$here/enter.sh" python3 -E -s -B "$repo/integration/demo/demo.py"
