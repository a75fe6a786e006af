# Every target installs what it needs, says so, and does nothing again that is done. The scripts
# behind them are in integration/testbed; a testbed needs root.

SCRIPTS := integration/testbed

# Each step says what it does; two at once would talk over each other.
.NOTPARALLEL:
.PHONY: help build tools images testbed testbed-down demo check test loop soak judges test-versions test-v2 test-node test-kubernetes conformance outside fuzz mutants bench evidence deb release lint map packages clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: packages ## the shim and the node tool, stripped, in target/dist
	@$(SCRIPTS)/rust.sh build

tools: packages ## containerd, runsc and CNI plugins, pinned, in target/tools/bin
	@$(SCRIPTS)/tools.sh

images: packages ## OCI archives from Debian packages, in target/images
	@$(SCRIPTS)/images.sh

testbed: build tools ## a private containerd to try things on; prints how
	@$(SCRIPTS)/images.sh busybox python
	@$(SCRIPTS)/up.sh

testbed-down: ## ends it and leaves nothing
	@$(SCRIPTS)/down.sh

demo: build tools ## one attack: as a plain process, on runc, on Bulkhead
	@$(SCRIPTS)/images.sh busybox python
	@integration/demo/run.sh

check: ## what to run after each change: formatting, clippy, papers, unit tests; needs no root
	@$(SCRIPTS)/packages.sh check
	@$(SCRIPTS)/rust.sh check

test: build tools images ## all tests, on real containerd and runsc
	@$(SCRIPTS)/packages.sh test
	@$(SCRIPTS)/tools.sh older
	@$(SCRIPTS)/rust.sh test
	@$(SCRIPTS)/leaves.sh

loop: build tools images ## 2,000 execs by ctr under load, and clients that open their streams late: none may hang
	@$(SCRIPTS)/loop.sh

soak: build tools images ## SOAK_SECONDS (1200) of everything at once on busy CPUs, then the same thing again and again: nothing may be left or grow
	@$(SCRIPTS)/soak.sh

judges: build tools ## stress-ng and CPython's own tests, on runc and on Bulkhead; held to docs/compatibility.md
	@$(SCRIPTS)/images.sh busybox python judges
	@$(SCRIPTS)/judges.sh

test-versions: build tools images ## the core of the tests on containerd 1.7, an old runsc, and by commands
	@$(SCRIPTS)/tools.sh older
	@$(SCRIPTS)/versions.sh

test-v2: build tools images ## the core of the tests on a host with cgroup v2 alone, in QEMU
	@$(SCRIPTS)/packages.sh v2
	@$(SCRIPTS)/v2.sh

test-node: deb tools images ## nodes with systemd and cgroup v2, Debian 12 and 13, in QEMU
	@$(SCRIPTS)/packages.sh v2
	@$(SCRIPTS)/node.sh

test-kubernetes: build tools images ## a node of a real API server and kubelet, whose build takes a quarter of an hour
	@$(SCRIPTS)/packages.sh test
	@$(SCRIPTS)/tools.sh kubernetes
	@$(SCRIPTS)/kubernetes.sh

conformance: build tools ## Kubernetes' suite for a runtime, critest, on runc and on Bulkhead; held to docs/kubernetes-conformance.md
	@$(SCRIPTS)/packages.sh conformance
	@$(SCRIPTS)/tools.sh conformance
	@$(SCRIPTS)/images.sh busybox python critest
	@$(SCRIPTS)/conformance.sh

outside: build tools ## containerd's own tests of a runtime, on runc and on Bulkhead; held to docs/outside.md
	@$(SCRIPTS)/packages.sh outside
	@$(SCRIPTS)/tools.sh outside
	@$(SCRIPTS)/images.sh busybox python outside
	@$(SCRIPTS)/outside.sh

fuzz: packages ## runsc-config under random input, FUZZ_SECONDS (30) for each target
	@$(SCRIPTS)/packages.sh fuzz
	@runsc-config/fuzz/run.sh $(FUZZ_SECONDS)

mutants: packages ## loosens one rule after the other, and expects the tests to notice
	@bash -c '. $(SCRIPTS)/lib.sh; exec runsc-config/tests/mutants.py'

bench: build tools images ## the figures, side by side, and in target/bench; gates nothing; BENCH_ONLY="work pods"
	@$(SCRIPTS)/tools.sh bench
	@$(SCRIPTS)/images.sh bench
	@$(SCRIPTS)/rust.sh bench

evidence: ## TARGET=NAME: runs a suite that CI leaves out, whole, and writes how it ended into docs/evidence.md
	@$(SCRIPTS)/evidence.py run $(TARGET)

deb: build ## the Debian package, with checksums and a list of what it is made of, in target/deb
	@$(SCRIPTS)/deb.sh

release: ## tarball, package, checksums, bill of materials and notes in target/releases, of a commit
	@$(SCRIPTS)/release.sh check
	@$(MAKE) --no-print-directory deb
	@$(SCRIPTS)/release.sh pack

map: ## docs/pictures/map.svg and the table of rooms in docs/architecture.md, from the imports of the code
	@$(SCRIPTS)/house.py map

lint: packages ## formatting, clippy, documentation, scripts, dependencies
	@$(SCRIPTS)/packages.sh test
	@$(SCRIPTS)/rust.sh lint

packages: # Debian packages; named when installed
	@$(SCRIPTS)/packages.sh

clean: testbed-down ## removes target/
	rm -rf target
