#!/usr/bin/env bash
# conformance.sh: Kubernetes' suite for a node's runtime, critest, in a testbed of its own: against runc, and against Bulkhead
# under docs/policies/compat.toml. Compared with docs/kubernetes-conformance.md. CONFORMANCE_POLICY names a file of lines that
# go over those of compat.toml; CONFORMANCE_STOCK gVisor's own shim, to be shown beside.
export BULKHEAD_TESTBED=${BULKHEAD_TESTBED:-/run/bulkhead-conformance}
. "$(dirname "$0")/lib.sh"

base=$repo/docs/policies/compat.toml
document=$repo/docs/kubernetes-conformance.md
results=$target/conformance
stock=${CONFORMANCE_STOCK:+$(realpath "$CONFORMANCE_STOCK")}
registry=127.0.0.1:5000

# conformance.py COMMAND…: what is data, not processes.
data() { python3 -I "$here/conformance.py" "$@"; }

# handler NAME TYPE [SHIM]: one whose options are in a file of that name. Asked for the host's devices, as it is without that key,
# Bulkhead refuses a privileged container before it starts.
handler() {
  cat <<CONFIG

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.$1]
  runtime_type = "$2"
  runtime_path = "${3:-}"
  privileged_without_host_devices = true

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.$1.options]
    ConfigPath = "/etc/bulkhead/$1.toml"
CONFIG
}

# What containerd has beside a testbed's own: every image comes from the registry below, and the handlers.
configuration() {
  cat <<CONFIG

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "bulkhead.test/sandbox:latest"

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "$testbed/registries"
CONFIG
  handler compat io.containerd.bulkhead.v1
  if [ -n "$stock" ]; then
    handler stock io.containerd.runsc.v1 "$stock"
    # Its shim reads the file where this says what it is.
    echo '    TypeUrl = "io.containerd.runsc.v1.options"'
  fi
}

# The flags of runsc that Bulkhead sets under compat.toml, where they decide what a spec sees.
stock_options() {
  cat <<CONFIG
binary_name = "$tools/runsc"

[runsc_config]
  platform = "systrap"
  oci-seccomp = "true"
  allow-suid = "true"
CONFIG
}

# furnish: what the node has beside a testbed's own.
furnish() {
  mkdir -p "$testbed/registries/_default"
  printf 'server = "http://%s"\n' "$registry" >"$testbed/registries/_default/hosts.toml"
  "$here/enter.sh" python3 -I "$here/conformance_registry.py" "$images/critest.tar" "${registry#*:}" >"$testbed/registry.log" 2>&1 &
  # It ends with the testbed, which is no news.
  disown
  local deadline=$((SECONDS + 30))
  until "$here/enter.sh" bash -c ": >/dev/tcp/${registry/://}" 2>/dev/null; do
    [ "$SECONDS" -lt $deadline ] || die "the registry does not answer: $(cat "$testbed/registry.log")"
    sleep 0.1
  done
  "$here/enter.sh" ln -s "$tools/portmap" /opt/cni/bin/
  "$here/enter.sh" cp "$here/conformance.conflist" /etc/cni/net.d/10-testbed.conflist
  # Only root's own file is a policy, and a checkout may be anybody's.
  "$here/enter.sh" install -m 0644 "$results/compat.toml" "$results/stock.toml" /etc/bulkhead/
}

# judge HANDLER: its status says that specs failed, which is no news; without a report it failed itself.
judge() {
  "$here/enter.sh" env TMPDIR="$volumes" critest --runtime-endpoint "unix://$testbed/containerd.sock" --runtime-handler "$1" \
    --ginkgo.seed=1 --ginkgo.no-color --ginkgo.json-report="$results/$1.json" || [ -s "$results/$1.json" ]
}

finish() {
  cp "$testbed"/*.log "$results/" 2>/dev/null || true
  "$here/down.sh" -q
  rm -rf "$volumes"
}

need_root "a node of its own"
[ -z "$stock" ] || [ -x "$stock" ] || die "CONFORMANCE_STOCK: $stock is no program"
"$here/down.sh" -q
rm -rf "$results"
mkdir -p "$results"
# The suite keeps its volumes there.
echo 'binds.writable = ["/tmp"]' >"$results/volumes.toml"
data policy "$base" "$results/volumes.toml" ${CONFORMANCE_POLICY:+"$CONFORMANCE_POLICY"} >"$results/compat.toml"
stock_options >"$results/stock.toml"
configuration >"$results/containerd.toml"
# critest leaves some of its volumes behind.
volumes=$(mktemp -d /tmp/bulkhead-conformance.XXXXXX)
trap finish EXIT
BULKHEAD_TESTBED_CONFIG=$results/containerd.toml "$here/up.sh" -q
furnish
for handler in runc compat ${stock:+stock}; do
  step "critest, handler $handler" judge "$handler"
done
say "cri-tools $("$tools/critest" -version 2>/dev/null | sed -n 's/^critest version: //p')," \
  "containerd $("$tools/containerd" --version | awk '{ sub("v", "", $3); print $3 }')," \
  "runsc $("$tools/runsc" --version | sed -n 's/^runsc version release-\([0-9]*\).*/\1/p'), kernel $(uname -r)"
data compare "$document" "runc $(runc --version | sed -n 's/^runc version \([0-9.]*\).*/\1/p')=$results/runc.json" \
  "Bulkhead, compat.toml${CONFORMANCE_POLICY:+ and ${CONFORMANCE_POLICY##*/}}=$results/compat.json" ${stock:+"gVisor's own shim=$results/stock.json"}
