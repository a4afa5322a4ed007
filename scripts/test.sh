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
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" blockzo

cores='import os; print(min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))'
workers="${BLOCKZO_TEST_WORKERS:-$("$bin/python" -c "$cores")}"
shared=(-n "$workers" --dist loadfile --no-loadscope-reorder)
[ "$workers" -gt 1 ] || shared=()
# those apart follow, unless one process runs all anyway
halves=2
[ "$workers" -gt 1 ] && [ "$fast" = 0 ] || halves=1

tests() {
    local status=0
    "$bin/python" -m pytest -p tests.no_skips -p tests.pace "$@" ${select[@]+"${select[@]}"} ${arguments[@]+"${arguments[@]}"} || status=$?
    # 5: none selected, which is wrong only if the other half has none either
    if [ "$status" = 5 ] && [ "$halves" = 2 ]; then halves=1; else return "$status"; fi
}
status=0
if [ "$halves" = 1 ]; then
    tests ${shared[@]+"${shared[@]}"} || status=$?
else
    tests --apart=without "${shared[@]}" || status=$?
    tests --apart=only || status=$?
fi
exit "$status"
