#!/usr/bin/env bash
# Everything that a machine with a GPU can say about blockzo, in one call of at most ten minutes and without a network: builds against
# the torch and triton that are there, runs the GPU tests, compares bits with the CPU, measures.
#   OUT  folder for the results (default: gpu-results)       PYTHON  the interpreter that has torch and triton
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
out="${OUT:-gpu-results}"
mkdir -p "$out"
unset TRITON_INTERPRET
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$PWD/build/triton}" OMP_WAIT_POLICY=PASSIVE

{
    date -u +%F
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$python" -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
} | tee "$out/machine.txt"

# without isolation and dependencies, as there is no network; a part that cannot be built is a failure, not a test less
arch="$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')"
status=0
BLOCKZO_REQUIRE_NATIVE=1 BLOCKZO_CUDA=1 BLOCKZO_CUDA_ARCHS="$arch" timeout 200 "$python" setup.py --quiet build_ext --inplace 2>&1 |
    tail -n 5 || status=1
cp blockzo/_build.json "$out/" || status=1

PYTHONPATH=. timeout 200 "$python" -m pytest -q -c /dev/null --rootdir=. --import-mode=importlib --noconftest -p no:cacheprovider tests/cuda 2>&1 | tee "$out/tests.txt" || status=1
PYTHONPATH=. timeout 200 "$python" benchmarks/gpu.py --csv "$out/results.csv" "$@" 2>&1 | tee "$out/benchmarks.txt" || status=1
exit "$status"
