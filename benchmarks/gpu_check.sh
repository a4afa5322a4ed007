#!/usr/bin/env bash
# What a machine with a GPU can say about blockzo, in two calls without a network, each well under ten minutes.
#   benchmarks/gpu_check.sh test       what is there (five seconds), builds, runs the GPU tests: at most 240 s
#   benchmarks/gpu_check.sh measure    compares bits with the CPU, then measures part by part, the most important first: at most 480 s
# A part that fails or runs too long costs its own results alone; the status says that there was one.
#   OUT  folder for the results (default: gpu-results)       PYTHON  the interpreter that has torch and triton
#   PARTS  which parts of `measure`, in this order           JOBS  how many tests at a time
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what="${1:-}"
python="${PYTHON:-python3}"
out="${OUT:-gpu-results}"
parts="${PARTS:-bits linear step moves choice products replay}"
jobs="${JOBS:-12}"
mkdir -p "$out"
unset TRITON_INTERPRET
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$PWD/build/triton}" OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 PYTHONPATH=.
status=0

# part NAME SECONDS COMMAND...: its output is in OUT/NAME.txt, and a line of its own in OUT/parts.txt says how it ended
part() {
    local name="$1" limit="$2" begin="$SECONDS" code
    shift 2
    echo "== $name (at most $limit s)"
    timeout -k 5 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
    code="${PIPESTATUS[0]}"
    echo "$name: status $code after $((SECONDS - begin)) s" | tee -a "$out/parts.txt"
    [ "$code" = 0 ] || status=1
    return "$code"
}

case "$what" in
test)
    : >"$out/parts.txt"
    part machine 60 "$python" benchmarks/gpu_machine.py || exit 2
    arch="$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')"
    # without isolation and dependencies, as there is no network
    part build 110 env BLOCKZO_REQUIRE_NATIVE=1 BLOCKZO_CUDA=1 BLOCKZO_CUDA_ARCHS="$arch" "$python" setup.py --quiet build_ext --inplace
    cp blockzo/_build.json "$out/" || status=1
    many=()
    if "$python" -c 'import xdist' 2>/dev/null; then many=(-n "$jobs" --dist worksteal); fi
    part tests $((235 - SECONDS)) "$python" -m pytest -q -c /dev/null --rootdir=. --import-mode=importlib --noconftest -p no:cacheprovider \
        ${many[@]+"${many[@]}"} tests/cuda
    ;;
measure)
    for name in $parts; do
        left=$((475 - SECONDS))
        [ "$left" -gt 10 ] || { echo "$name: no time left" | tee -a "$out/parts.txt"; status=1; continue; }
        # a process each: a fault of the device takes no other part along
        part "$name" $((left < 120 ? left : 120)) "$python" benchmarks/gpu.py --only "$name" --csv "$out/results.csv" "${@:2}"
    done
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
exit "$status"
