#!/usr/bin/env bash
# outside.sh: tests that containerd's own authors wrote, against runc and against Bulkhead under docs/policies/compat.toml, each in
# a testbed of its own. `client` is what they ask of a runtime by containerd's client, `cri` by the CRI plugin. How each case
# ends is compared with docs/outside.md. OUTSIDE_ONLY is a regular expression of Go: only these cases are run, and nothing is
# compared. OUTSIDE_SUITES and OUTSIDE_RUNTIMES are some of them, OUTSIDE_RESULTS the folder of the reports.
export BULKHEAD_TESTBED=${BULKHEAD_TESTBED:-/run/bulkhead-outside}
. "$(dirname "$0")/lib.sh"

document=$repo/docs/outside.md
results=${OUTSIDE_RESULTS:-$target/outside}
hosts=(ghcr.io registry.k8s.io registry-1.docker.io)
# Where the client's tests keep the data of the containerd that they start.
client_root=/var/lib/containerd-test

data() { python3 -I "$here/outside.py" "$@"; }

# inside COMMAND…: in the testbed.
inside() { "$here/enter.sh" "$@"; }

# certify: an authority and the certificate of all registries.
certify() {
  local names
  names=$(printf ',DNS:%s' "${hosts[@]}")
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=registries of a testbed" \
    -addext "subjectAltName=${names#,}" -keyout "$results/key.pem" -out "$results/certificate.pem" 2>/dev/null
}

# configuration: what containerd has beside a testbed's own.
configuration() {
  cat <<CONFIG

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "registry.k8s.io/pause:3.10.2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.compat]
  runtime_type = "io.containerd.bulkhead.v1"
  privileged_without_host_devices = true

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.compat.options]
    ConfigPath = "/etc/bulkhead/config.toml"
CONFIG
}

# furnish: what the node has beside a testbed's own. /etc is the testbed's by a layer.
furnish() {
  local authorities=/etc/ssl/certs/ca-certificates.crt deadline=$((SECONDS + 30))
  inside bash -c 'printf "127.0.0.1 %s\n" "$@" >>/etc/hosts' - "${hosts[@]}"
  inside mkdir -p "${authorities%/*}"
  inside bash -c "cat '$results/certificate.pem' >>$authorities"
  inside install -m 0644 "$results/policy.toml" /etc/bulkhead/config.toml
  mkdir -p "$store/client"
  inside mkdir -p "$client_root"
  inside mount -n --bind "$store/client" "$client_root"
  inside python3 -I -B "$here/outside_registry.py" "$images/outside.tar" 443 "$results/certificate.pem" "$results/key.pem" \
    >"$testbed/registry.log" 2>&1 &
  # It ends with the testbed, which is no news.
  disown
  # Some cases end containerd and wait for it: a node has somebody who starts it again, later than they
  # look whether it has gone.
  # shellcheck disable=SC2016 # it is the inner shell's to expand
  inside bash -c 'while sleep 0.1; do
      read -r pid <"$1/containerd.pid"
      [ -e "/proc/$pid" ] || { sleep 5; containerd --config "$1/config.toml" >>"$1/containerd.log" 2>&1 & echo $! >"$1/containerd.pid"; }
    done' - "$testbed" &
  disown
  until inside bash -c ': >/dev/tcp/127.0.0.1/443' 2>/dev/null; do
    [ "$SECONDS" -lt $deadline ] || die "the registry does not answer: $(cat "$testbed/registry.log")"
    sleep 0.1
  done
}

# judge SUITE RUNTIME ARGUMENT…: the status says that cases failed, which is no news; without a case it failed itself.
judge() {
  local suite=$1 runtime=$2 report=$results/$1-$2.txt
  shift 2
  # The tests look for some files beside themselves.
  inside env -C "$sources/$suite" TMPDIR="$scratch" TEST_RUNTIME="$type" "$sources/$suite.test" -test.v \
    -test.timeout 40m ${OUTSIDE_ONLY:+-test.run "$OUTSIDE_ONLY"} -test.skip "$(data left-out "$document" "$suite" "$runtime")" "$@" \
    >"$report" || grep -q -e '^--- ' "$report"
}

finish() {
  cp "$testbed"/*.log "$results/" 2>/dev/null || true
  "$here/down.sh" -q
  rm -rf "$scratch"
}

need_root "a node of its own"
# Cases count what a shim has open, and what this script was started with would come along. 255 is where bash reads it from.
for opened in /proc/self/fd/*; do
  number=${opened##*/}
  if [ "$number" -gt 2 ] && [ "$number" -ne 255 ]; then eval "exec $number>&-"; fi
done
sources=$target/tools/outside
"$here/down.sh" -q
rm -rf "$results"
mkdir -p "$results"
certify
# What the tests bind is in there.
scratch=$(mktemp -d /tmp/bulkhead-outside.XXXXXX)
echo 'binds.writable = ["/tmp"]' >"$results/binds.toml"
python3 -I "$here/conformance.py" policy "$repo/docs/policies/compat.toml" "$results/binds.toml" >"$results/policy.toml"
configuration >"$results/containerd.toml"
trap finish EXIT
for runtime in ${OUTSIDE_RUNTIMES:-runc bulkhead}; do
  case $runtime in
    runc) type=io.containerd.runc.v2 handler=runc ;;
    bulkhead) type=io.containerd.bulkhead.v1 handler=compat ;;
  esac
  # A case wants execs whose output stays open to be given up.
  BULKHEAD_TESTBED_CONFIG=$results/containerd.toml BULKHEAD_TESTBED_CRI='  drain_exec_sync_io_timeout = "10s"' "$here/up.sh" -q
  furnish
  for suite in ${OUTSIDE_SUITES:-client cri}; do
    case $suite in
      client) arguments=(-test.root) ;;
      cri) arguments=(-cri-endpoint "unix://$testbed/containerd.sock" -runtime-handler "$handler" -build-dir "$tools") ;;
    esac
    step "containerd's tests, $suite, $runtime" judge "$suite" "$runtime" "${arguments[@]}"
  done
  cp "$testbed/containerd.log" "$results/containerd-$runtime.log"
  "$here/down.sh" -q
done
say "containerd $("$tools/containerd" --version | awk '{ sub("v", "", $3); print $3 }')," \
  "runsc $("$tools/runsc" --version | sed -n 's/^runsc version release-\([0-9]*\).*/\1/p')," \
  "runc $(runc --version | sed -n 's/^runc version \([0-9.]*\).*/\1/p'), kernel $(uname -r)"
[ -z "${OUTSIDE_ONLY:-}${OUTSIDE_RUNTIMES:-}" ] || exit 0
data compare "$document" "$results" "${OUTSIDE_SUITES:-client cri}"
