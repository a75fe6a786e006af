#!/usr/bin/env bash
# Fuzzes runsc-config for a while: run.sh [SECONDS [TARGET…]]. What is found anew is kept in
# target/fuzz/corpus and used the next time; `run.sh keep` puts the part of it that reaches something
# new into corpus, to be committed.
. "$(dirname "$0")/../../integration/testbed/lib.sh"

fuzz=$repo/runsc-config/fuzz
built=$target/fuzz/x86_64-unknown-linux-gnu/release
seconds=${1:-30}
shift $(($# > 0))
[ $# -gt 0 ] || set -- spec policy seccomp

# What libFuzzer needs of the compiler, as the stable one takes it too: counters, without a sanitizer,
# as there is no unsafe code in here.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Ccodegen-units=1
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
build() {
  # With a target of its own, so that build scripts are not instrumented.
  (cd "$fuzz" && RUSTFLAGS=$(tr '\n' ' ' <<<"$coverage") cargo build --locked --release \
    --target x86_64-unknown-linux-gnu --target-dir "$target/fuzz")
}

attack() {
  local name=$1 kept=$target/fuzz/corpus/$1 log=$target/logs/fuzz-$1.log
  mkdir -p "$kept" "$target/fuzz/crashes" "$target/logs"
  "$built/$name" -max_total_time="$seconds" -max_len=16384 -dict="$fuzz/json.dict" -timeout=10 \
    -print_final_stats=1 -artifact_prefix="$target/fuzz/crashes/$name-" "$kept" "$fuzz/corpus/$name" \
    >"$log" 2>&1 || {
    grep -E 'panicked|ERROR|Test unit written' -A 3 "$log" >&2
    die "$name: an input breaks it; the whole output is in $log"
  }
  printf '    %s: %s inputs, none breaks it; %s in the corpus\n' "$name" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$(find "$kept" "$fuzz/corpus/$name" -type f | wc -l)"
}

keep() {
  local name merged
  for name in spec policy seccomp; do
    merged=$(mktemp -d)
    "$built/$name" -set_cover_merge=1 -use_counters=0 "$merged" "$fuzz/corpus/$name" "$target/fuzz/corpus/$name" >/dev/null 2>&1
    cp -n "$merged"/* "$fuzz/corpus/$name/"
    rm -rf "$merged"
  done
}

[ "$(uname -m)" = x86_64 ] || die "this is set up for x86_64; $(uname -m) has no target here"
step "building the fuzz targets" build
if [ "$seconds" = keep ]; then
  keep
else
  say "==> fuzzing runsc-config, $seconds s each: $*"
  for name; do attack "$name"; done
fi
