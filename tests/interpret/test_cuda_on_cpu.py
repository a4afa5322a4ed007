"""The CUDA kernels on threads of the CPU (csrc/tests/cuda_on_cpu): the source that nvcc compiles gives the reference's bits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from blockzo.ops.backends.gpu import cuda, kernels
from blockzo.ops.params import Target
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, changes, expected, same_bits, weights
from tests.interpret.packed_cases import check_rewritten

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SIZES = (0, 1, 7, 129, 300, 4097, 16385, 40000)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = CSRC / "tests" / "cuda_on_cpu"
    target = tmp_path_factory.mktemp("emulated") / "moves.so"
    flags = "-O2 -std=c++17 -ffp-contract=off -fno-math-errno -fPIC -shared -pthread -Wall -Wno-unknown-pragmas".split()
    command = [compiler, *flags, f"-I{folder}", f"-I{CSRC / 'include'}", str(folder / "moves.cpp"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cuda.load(target)


@pytest.fixture
def emulated(library, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "cuda_library", lambda device: library)


@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits(emulated, dtype: torch.dtype, distribution: str, name: str) -> None:
    change = changes(distribution)[name]
    sizes = SIZES if name in ("perturb_", "shift_ of three", "update_ stochastic") else SIZES[:5]
    given = [weights(size, dtype, seed=size) for size in sizes]
    # one of two does not begin where 16 bytes do
    found = [torch.empty(len(w) + 1, dtype=dtype)[k % 2 :][: len(w)].copy_(w) for k, w in enumerate(given)]
    streams = [0, 0xFFFFFFFF, *range(17, 15 + len(sizes))]
    change(kernels, [Target(str(k), s, w) for k, (s, w) in enumerate(zip(streams, found, strict=True))])
    for size, mine, want in zip(sizes, found, expected(change, given, streams), strict=True):
        assert same_bits(mine, want), size


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_numbers_in_memory(emulated, distribution: str) -> None:
    """A launch with the same tables reads what was written to them since."""
    check_rewritten(kernels, distribution, (300, 16385), torch.bfloat16)


def test_nothing_beyond_a_tensor_is_written(emulated) -> None:
    for dtype in DTYPES:
        buffer = torch.full((700,), 1234.5, dtype=dtype)
        changes("gaussian")["update_ of three"](kernels, [Target("w", 1, buffer[64:513])])
        assert bool((buffer[:64] == 1234.5).all() and (buffer[513:] == 1234.5).all())
