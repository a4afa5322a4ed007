#!/usr/bin/env bash
# Sets up (scripts/setup.sh), builds the kernels of this checkout, checks style and types, runs the tests.
#   --slow  the long forms too.   All other arguments go to pytest: scripts/test.sh -k noise tests/reference
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# the tests compare the native kernels with the reference: without them there is little to test
export BLOCKZO_REQUIRE_NATIVE="${BLOCKZO_REQUIRE_NATIVE:-1}"
# spinning threads of two pools fight over two cores
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

select=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [ "$argument" = --slow ]; then select=(); else arguments+=("$argument"); fi
done

scripts/setup.sh
bin="${BLOCKZO_VENV:-.venv}/bin"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy" blockzo
"$bin/python" -m pytest -p tests.no_skips ${select[@]+"${select[@]}"} ${arguments[@]+"${arguments[@]}"}
