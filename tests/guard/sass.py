"""Instructions of GPU kernels as they are compiled ahead of time, with their loads and stores of global memory. The tests hand
over what they have compiled anyway; `counted` compiles.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("instructions", "loop", "loads", "stores")
DTYPES = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
MODES = ("perturb", "shift", "update")


def section() -> str:
    return f"sass triton {version('triton')}"


def figures(compiled: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of what `tests/aot/kernels.py` measured."""
    return {case: {kind: found[kind] for kind in KINDS} for case, found in compiled.items()}


def counted() -> dict[str, dict[str, float]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "tests" / "aot" / "kernels.py")]
        done = subprocess.run(
            command, env={**environment, "TRITON_CACHE_DIR": folder}, capture_output=True, text=True, check=True
        )
    return figures(json.loads(done.stdout))


def cuda_section(compiler: str) -> str:
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.", told)
    return f"cuda nvcc {found[1] if found else told}"


def cuda_figures(sass: str) -> dict[str, dict[str, float]]:
    """Of `cuobjdump -sass` for one GPU: every kernel of csrc/cuda."""
    found: dict[str, dict[str, float]] = {}
    for text in sass.split("Function : ")[1:]:
        name = re.search(r"4moveI(\w+?)Li(\d)ELb([01])E", text.split("\n")[0])
        if name is None:
            continue
        case = f"{MODES[int(name[2])]} {DTYPES[name[1]]} {'gaussian' if name[3] == '1' else 'rademacher'}"
        words = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text)
        kinds = Counter(word.split(".")[0] for word in words)
        found[case] = {
            "instructions": len(words) - kinds["NOP"],
            "loads": kinds["LDG"] + kinds["LD"],
            "stores": kinds["STG"] + kinds["ST"],
        }
    return found


def cuda_counted(compiler: str) -> dict[str, dict[str, float]]:
    """Compiled as setup.py does, for Hopper alone."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "moves.cubin")
        options = ["-O3", "-std=c++17", "-fmad=false", "-arch=sm_90", "-cubin", f"-I{ROOT / 'csrc' / 'include'}"]
        subprocess.run(
            [compiler, *options, str(ROOT / "csrc" / "cuda" / "moves.cu"), "-o", str(target)],
            check=True,
            capture_output=True,
        )
        tool = triton.knobs.nvidia.cuobjdump.path
        sass = subprocess.run([tool, "-sass", str(target)], capture_output=True, text=True, check=True).stdout
    return cuda_figures(sass)


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which(
        "nvcc", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    )
