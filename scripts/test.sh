#!/usr/bin/env bash
# Sets up (scripts/setup.sh), builds the kernels of this checkout, checks style and types, runs the tests, as many at a time as
# there are cores; tests/README.md says how they are shared out.
#   --fast   one short case of each test function, while you work     --slow   the long forms too
# All other arguments go to pytest: scripts/test.sh -k noise tests/reference
#   BLOCKZO_TEST_WORKERS  how many at a time, 0 for all in one process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# the tests compare the native kernels with the reference: without them there is little to test
export BLOCKZO_REQUIRE_NATIVE="${BLOCKZO_REQUIRE_NATIVE:-1}"
# spinning threads of two pools fight over two cores
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

select=(-m "not slow")
arguments=()
fast=0
for argument in "$@"; do
    if [ "$argument" = --slow ]; then select=(); else arguments+=("$argument"); fi
    if [ "$argument" = --fast ]; then fast=1; fi
done

scripts/setup.sh
bin="${BLOCKZO_VENV:-.venv}/bin"
# the oldest Triton that is served, beside the installed one (tests/aot/test_other_triton.py)
if [ "${BLOCKZO_CI:-0}" = 1 ] && [ ! -d build/tritons/3.6.0 ]; then
    "$bin/python" -m pip install -q --no-deps --target build/tritons/3.6.0 triton==3.6.0
fi
"$bin/ruff" check .
"$bin/ruff" format --check .

cores='import os; print(min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))'
workers="${BLOCKZO_TEST_WORKERS:-$("$bin/python" -c "$cores")}"
shared=(-n "$workers" --dist loadfile --no-loadscope-reorder)
[ "$workers" -gt 1 ] || shared=()
# those apart run beside the workers, unless one process runs all anyway
halves=2
[ "$workers" -gt 1 ] && [ "$fast" = 0 ] || halves=1

before=()
tests() {
    ${before[@]+"${before[@]}"} "$bin/python" -m pytest -p tests.no_skips -p tests.pace "$@" ${select[@]+"${select[@]}"} ${arguments[@]+"${arguments[@]}"}
}

beside="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$beside"' EXIT
types=0 rest=0 apart=5

"$bin/mypy" blockzo >"$beside/types" 2>&1 &
types_job=$!
if [ "$halves" = 1 ]; then
    tests ${shared[@]+"${shared[@]}"} || rest=$?
else
    tests --apart=only >"$beside/apart" 2>&1 &
    apart_job=$!
    # what waits against the clock comes first wherever it needs a core
    before=(nice -n 10)
    tests --apart=without "${shared[@]}" || rest=$?
    wait "$apart_job" && apart=0 || apart=$?
    printf '\nTests marked apart:\n'
    cat "$beside/apart"
fi
wait "$types_job" || types=$?
cat "$beside/types"

# 5: none selected, which is wrong only if the other half has none either
[ "$rest" = 5 ] && [ "$apart" != 5 ] && rest=0
[ "$apart" = 5 ] && apart=0
[ "$types" = 0 ] || exit "$types"
[ "$rest" = 0 ] || exit "$rest"
exit "$apart"
