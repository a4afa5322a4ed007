"""The CUDA library: nvcc builds it within its budget, it loads without a driver, refuses politely; its absence hurts nothing."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from blockzo.ops.backends.gpu import cuda
from tests.packaging.builds import NVCC, ROOT, Result, copy_tree, execute

# compiles for three GPUs
pytestmark = pytest.mark.heavy

ARCHES = (80, 90, 100)
# instructions of a Philox call, for 128 weights, and shift and exclusive or of a sign
LEAST_NOISE = 58 / 128 + 2


def test_a_missing_library_is_no_library(tmp_path: Path) -> None:
    assert cuda.load(tmp_path / "_cuda.so") is None
    (tmp_path / "_cuda.so").write_bytes(b"not a library")
    assert cuda.load(tmp_path / "_cuda.so") is None


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "old.c", tmp_path / "_cuda.so"
    source.write_text("int blockzo_cuda_version(void) { return 99; }\n")
    done = execute([os.environ.get("CC", "cc"), "-shared", "-fPIC", source, "-o", target], tmp_path)
    assert done.returncode == 0, done.stdout
    with pytest.raises(cuda.CudaError, match=f"interface 99; expected {cuda.VERSION}"):
        cuda.load(target)


def build(tree: Path, **changes: str | None) -> Result:
    """`setup.py build_ext --inplace` in a copy of the sources, without the native kernels, which take longer."""
    return execute([sys.executable, "setup.py", "build_ext", "--inplace"], tree, CXX="/bin/false", **changes)


def report(tree: Path) -> dict[str, object]:
    found = json.loads((tree / "blockzo" / "_build.json").read_text())
    assert isinstance(found, dict)
    return found


def test_required_cuda_without_a_compiler_fails_the_build(tree: Path, tmp_path: Path) -> None:
    done = build(tree, BLOCKZO_CUDA="1", NVCC="no-such-compiler", CUDA_HOME=str(tmp_path), PATH="/usr/bin:/bin")
    assert done.returncode != 0
    assert "BLOCKZO_CUDA is 1 and no nvcc was found" in done.stdout


def test_required_cuda_that_does_not_compile_fails_the_build(tree: Path) -> None:
    done = build(tree, BLOCKZO_CUDA="1", NVCC="/bin/false")
    assert done.returncode != 0
    assert "the CUDA kernels could not be built and BLOCKZO_CUDA is 1" in done.stdout


@pytest.mark.parametrize("asked", [None, "0"])
def test_nothing_is_compiled_for_gpus_unless_asked(tree: Path, tmp_path: Path, asked: str | None) -> None:
    compiler, traces = tmp_path / "nvcc", tmp_path / "traces"
    compiler.write_text(f"#!/bin/sh\ntouch {traces}\n")
    compiler.chmod(0o755)
    done = build(tree, BLOCKZO_CUDA=asked, NVCC=str(compiler))
    assert done.returncode == 0, done.stdout
    assert "nvcc found; set BLOCKZO_CUDA=1 to build the CUDA kernels" in done.stdout
    assert not traces.exists() and not (tree / "blockzo" / "_cuda.so").exists()
    assert report(tree)["cuda"] is False and "BLOCKZO_CUDA=1" in str(report(tree)["cuda_reason"])


if NVCC:

    @pytest.fixture(scope="module")
    def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The library as an install makes it that asks for it, and what the assembler said."""
        tree = copy_tree(tmp_path_factory.mktemp("cuda") / "tree")
        done = build(tree, BLOCKZO_CUDA="1", NVCC_APPEND_FLAGS="-Xptxas -v")
        assert done.returncode == 0, done.stdout
        assert report(tree)["cuda"] is True and "building the CUDA kernels" in done.stdout
        (tree / "blockzo" / "ptxas.txt").write_text(done.stdout)
        return tree / "blockzo" / "_cuda.so"

    def test_registers_and_spills_stay_within_budget(library: Path) -> None:
        text = library.with_name("ptxas.txt").read_text()
        spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        registers = [int(number) for number in re.findall(r"Used (\d+) registers", text)]
        assert len(registers) == 18 * len(ARCHES)  # 3 dtypes, 3 modes, 2 distributions
        assert set(spills) == {("0", "0", "0")}
        # 3 blocks of 128 threads a multiprocessor at least
        assert max(registers) <= 168

    def test_noise_of_a_replay_is_near_the_least_instructions(library: Path) -> None:
        import triton

        tool = triton.knobs.nvidia.cuobjdump.path
        found = execute([tool, "-sass", "-arch", "sm_90", library], library.parent).stdout
        # float32, update, Rademacher
        (text,) = re.findall(r"Function : \S*4moveIfLi2ELb0E.*?(?=Function :|\Z)", found, flags=re.S)
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text)
        place = {int(address, 16): number for number, (address, _) in enumerate(lines)}
        loops = []
        for number, (_, line) in enumerate(lines):
            branch = re.search(r"BRA\S* (?:\S+, )?0x([0-9a-f]+)", line)
            begin = place.get(int(branch[1], 16), number) if branch else number
            if begin < number:
                loops.append(lines[begin : number + 1])
        # the loop of one step's directions: 64 weights of a lane, each of which is moved by one addition
        inner = min(loops, key=len)
        additions = sum("FADD" in line for _, line in inner)
        assert additions == 64
        assert (len(inner) - additions) / 64 <= 1.5 * LEAST_NOISE

    def test_vectors_of_a_part_are_asked_for_together(library: Path) -> None:
        """With one 16-byte load of a lane under way a move has about half of a GPU's bandwidth."""
        import triton

        found = execute([triton.knobs.nvidia.cuobjdump.path, "-sass", "-arch", "sm_90", library], library.parent).stdout
        together = {}
        for text in found.split("Function : ")[1:]:
            words = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text)
            line = "".join(
                "L" if re.match(r"LDG?\..*128", w) else "|" if w[:3] in ("BRA", "BSY", "BSS") else "" for w in words
            )
            together[text.split("\n")[0]] = max(map(len, re.findall(r"L+", line)))
        for kind, least in (("13__nv_bfloat16", 4), ("6__half", 4), ("f", 8)):
            (name,) = (name for name in together if f"4moveI{kind}Li0ELb0E" in name)
            assert together[name] >= least, name

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
    def test_it_loads_without_a_driver_and_says_so(library: Path) -> None:
        found = cuda.load(library)
        assert found is not None
        assert found.blockzo_cuda_devices() <= 0
        code = found.blockzo_cuda_move(None, None, 1, None, 1, None, 0, 0, 0, None)
        assert code != 0
        with pytest.raises(cuda.CudaError, match=f"report error {code}: "):
            cuda.check(found, code)
        assert found.blockzo_cuda_move(None, None, 0, None, 1, None, 0, 0, 0, None) == 0
        for arguments in ((1, 0, 0, 0, 0), (1, 1, 9, 0, 0), (1, 1, 0, 9, 0), (1, 1, 0, 0, 9)):
            count, steps, dtype, mode, distribution = arguments
            code = found.blockzo_cuda_move(None, None, count, None, steps, None, dtype, mode, distribution, None)
            assert code == 1  # cudaErrorInvalidValue

    def test_nothing_is_exported_but_the_interface(library: Path) -> None:
        done = execute(["nm", "-D", "--defined-only", library], library.parent)
        assert done.returncode == 0, done.stdout
        names = {line.split()[-1] for line in done.stdout.splitlines()}
        assert {name for name in names if "blockzo" in name} == {
            f"blockzo_cuda_{name}" for name in ("move", "chunk", "version", "devices", "error")
        }


def test_this_checkout_reports_its_build() -> None:
    assert report(ROOT)["cuda"] is (ROOT / "blockzo" / "_cuda.so").exists()
