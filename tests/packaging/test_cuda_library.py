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
from tests.aot.hazards import Listing, loads_together
from tests.guard import sass
from tests.guard.figures import holds
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


def moving_loops(listing: Listing) -> list[list[str]]:
    """Those that add, the innermost first."""
    return sorted((body for body in listing.loops() if any("FADD" in line for line in body)), key=len)


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

    @pytest.fixture(scope="module")
    def kernels(library: Path) -> dict[str, Listing]:
        """What sm_90 runs, by the type, mode and distribution of a move: fLi2ELb0E is float32, update, Rademacher."""
        import triton

        tools = triton.knobs.nvidia
        execute([tools.cuobjdump.path, "-xelf", "sm_90", library], library.parent)
        # one of them is the linker's, and holds no kernel
        binaries = library.parent.glob("*.sm_90.cubin")
        found = "".join(execute([tools.nvdisasm.path, "-c", binary], library.parent).stdout for binary in binaries)
        parts = re.split(r"\.section\s+\.text\.\S*4moveI(\w+?Lb[01]E)", found)
        return {name: Listing.of(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}

    def test_noise_of_a_replay_is_near_the_least_instructions(kernels: dict[str, Listing]) -> None:
        # the loop of one step's further directions: 64 weights of a lane, each of which is moved by one addition
        inner = moving_loops(kernels["fLi2ELb0E"])[0]
        additions = sum("FADD" in line for line in inner)
        assert additions == 64
        assert (len(inner) - additions) / 64 <= 1.5 * LEAST_NOISE

    def test_a_replay_adds_no_zero_and_multiplies_by_no_one(kernels: dict[str, Listing]) -> None:
        """A step of one direction without decay is one subtraction a weight."""
        inner, step = moving_loops(kernels["fLi2ELb0E"])[:2]
        pieces = [[0, 0]]
        for line in step:
            if line.startswith("BRA"):
                pieces.append([0, 0])
            pieces[-1][0] += "FADD" in line
            pieces[-1][1] += "FMUL" in line
        # further directions, and weights with and without decay
        assert sorted(piece for piece in pieces if any(piece)) == [[64, 0], [64, 0], [64, 64]], pieces
        assert len(inner) < len(step) / 2

    def test_code_does_no_more_than_is_recorded(library: Path) -> None:
        import triton

        done = execute([triton.knobs.nvidia.cuobjdump.path, "-sass", "-arch", "sm_90", library], library.parent)
        holds(sass.cuda_section(str(NVCC)), sass.cuda_figures(done.stdout))

    def test_vectors_of_a_part_are_asked_for_together(kernels: dict[str, Listing]) -> None:
        """With one 16-byte load of a lane under way a move has about half of a GPU's bandwidth."""
        together = {name: loads_together(listing.lines) for name, listing in kernels.items()}
        assert len(together) == 18 and min(together.values()) == 4, together
        # float32 takes twice the vectors, where the registers are there
        assert all(together[f"fLi{mode}ELb0E"] == count for mode, count in enumerate((8, 8, 16)))

    def test_no_access_is_generic(kernels: dict[str, Listing]) -> None:
        """Addresses come out of a table: the compiler has to be told that they are of global memory."""
        for name, listing in kernels.items():
            words = {line.split()[0] for line in listing.lines}
            assert not [word for word in words if re.match(r"(LD|ST)(\.|$)", word)], name

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
