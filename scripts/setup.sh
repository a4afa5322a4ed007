#!/usr/bin/env bash
# Makes the virtual environment of this checkout: torch, blockzo with its native kernels built in place, and what the tests need.
# Safe to repeat: it does only what changed since the last time.
#   BLOCKZO_VENV  another folder than .venv        PYTHON  the interpreter to start from (3.10 or newer)
#   BLOCKZO_CUDA=1  the CUDA kernels too (nvcc)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${BLOCKZO_VENV:-.venv}"
python="${PYTHON:-python3}"
torch_version=2.13.0

if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(f"blockzo needs Python 3.10 or newer, found {sys.version.split()[0]}; set PYTHON" if sys.version_info < (3, 10) else 0)'
    "$python" -m venv "$venv" || { echo "python3 -m venv failed (Debian: apt-get install python3-venv)" >&2; exit 1; }
fi
py="$venv/bin/python"
venv_bin="$(cd "$venv/bin" && pwd)"
export PATH="$venv_bin:$PATH" # ninja, once it is installed

digest() { "$py" -c '
import hashlib, pathlib, sys
total = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(file.as_posix().encode() + b"\0" + file.read_bytes())
print(total.hexdigest())' "$@"; }

# the folder counts too: an environment made for another checkout points there
wanted="$PWD $(digest pyproject.toml setup.py scripts/setup.sh)"
built="$PWD ${CXX:-} ${CXXFLAGS:-} $(digest setup.py csrc)"
stamp="$venv/.blockzo-setup"
native_stamp="$venv/.blockzo-native"
native() { ls blockzo/_native*.so >/dev/null 2>&1; }
# a set-up that does not ask for them leaves those of an earlier one
cuda() { [ "${BLOCKZO_CUDA:-0}" != 1 ] || [ -e blockzo/_cuda.so ]; }

if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    rm -f "$stamp"
    "$py" -m pip install -qq --upgrade pip "setuptools>=77" "pybind11>=2.12" ninja
    # compiles while torch is fetched and unpacked; the installation below finds it done, or says what is wrong
    (BLOCKZO_CUDA=0 "$py" setup.py --quiet build_ext --inplace >/dev/null 2>&1 || true) &
    # first and alone, so that its version is the one meant; the rest then finds it installed
    "$py" -m pip install -qq "torch==$torch_version"
    wait
    "$py" -m pip install -qq --no-build-isolation --editable ".[gguf,test]" "torch==$torch_version"
    echo "$wanted" >"$stamp"
    echo "$built" >"$native_stamp"
elif [ "$(cat "$native_stamp" 2>/dev/null || true)" != "$built" ] || ! native || ! cuda; then
    rm -f "$native_stamp"
    "$py" setup.py --quiet build_ext --inplace
    echo "$built" >"$native_stamp"
fi

if native; then
    echo "blockzo is ready: . $venv/bin/activate"
else
    echo "blockzo is ready, in pure Python and so many times slower: . $venv/bin/activate" >&2
    "$py" -c 'import json; print("no native kernels:", json.load(open("blockzo/_build.json"))["reason"])' >&2 || true
fi
