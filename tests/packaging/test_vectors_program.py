"""The kernels as a C++ program without Python: on this machine, on an emulated ARM, and the headers through nvcc."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.packaging import bfdot
from tests.packaging.builds import NVCC, ROOT, Result, execute, extension_objects
from tests.packaging.vector_cases import all_cases, noise_cases

# compiles the kernels, for two machines
pytestmark = pytest.mark.heavy

CSRC = ROOT / "csrc"
PROGRAM = CSRC / "tests" / "vectors.cpp"
FLAGS = "-O3 -std=c++17 -ffp-contract=off -fno-math-errno -fvisibility=hidden -Wall -Wextra -Werror -Wno-psabi".split()
FLAGS.append(f"-I{CSRC / 'include'}")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.txt"
    path.write_text("\n".join(all_cases()) + "\n")
    return path


def tool(name: str) -> str:
    """CI has every tool; elsewhere a machine may have no cross compiler and no emulator."""
    found = shutil.which(name)
    if found is None and os.environ.get("BLOCKZO_CI"):
        pytest.fail(f"{name} is not installed; .ci/run lists the packages")
    return found or pytest.skip(f"{name} is not installed; .ci/run lists the packages")


def sources() -> list[Path]:
    found = sorted((CSRC / "cpu").glob("*.cpp"))
    assert len(found) > 1
    return found


def build(compiler: str, folder: Path, *options: str, kernels: Sequence[Path] = ()) -> Path:
    """All kernels, or objects of them, and the program, two sources at a time."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        done = execute([compiler, *FLAGS, *options, "-c", source, "-o", target], folder)
        assert done.returncode == 0, done.stdout
        return target

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile_one, [PROGRAM, *([] if kernels else sources())]))
    program = folder / "vectors"
    linked = execute([compiler, *options, *objects, *kernels, "-pthread", "-o", program], folder)
    assert linked.returncode == 0, linked.stdout
    return program


def paths(result: Result, word: str = "path") -> set[str]:
    """Instruction sets by `word`: "path", those that ran; "refused", those that the CPU lacks; "chosen", that of no choice."""
    assert result.returncode == 0 and " 0 failures" in result.stdout, result.stdout[-3000:]
    return {line.removeprefix(f"{word} ") for line in result.stdout.splitlines() if line.startswith(f"{word} ")}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    kernels = [shutil.copy(path, folder / path.name.removeprefix("csrc-cpu-")) for path in extension_objects()]
    return build(tool("g++"), folder, "-fopenmp", kernels=kernels)


def test_no_source_has_a_warning(tmp_path: Path) -> None:
    for source in sources():
        done = execute([tool("g++"), *FLAGS, "-fopenmp", "-fsyntax-only", source], tmp_path)
        assert done.returncode == 0, done.stdout


def test_on_this_machine(native: Path, cases: Path, tmp_path: Path) -> None:
    assert "baseline" in paths(execute([native, cases], tmp_path))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets compared are those of x86-64")
def test_newer_instructions_stay_in_their_files(native: Path, tmp_path: Path) -> None:
    """An older CPU runs all code but the kernels of newer sets; the linker may keep any file's copy of an inline function."""
    for path in sorted(native.parent.glob("*.o")):
        wide = wide_instructions(path, tmp_path)
        expected = path.name.partition(".")[0] in {"avx2", "avx512"}
        assert bool(wide) is expected, f"{path.stem}: {wide[:5]}"
        assert not [section for section in wide if section != ".text"], f"{path.stem} shares wide code: {wide}"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="older CPUs of this architecture are emulated")
@pytest.mark.parametrize(("cpu", "expected"), [("Nehalem", {"baseline"}), ("Haswell", {"avx2", "baseline"})])
def test_on_older_cpus(native: Path, cases: Path, tmp_path: Path, cpu: str, expected: set[str]) -> None:
    """The very program of this machine, where instructions that it has are missing."""
    done = execute([tool("qemu-x86_64-static"), "-cpu", cpu, native, cases], tmp_path)
    assert paths(done) == expected and paths(done, "refused") >= {"avx512"}


def wide_instructions(path: Path, folder: Path) -> list[str]:
    """Sections of an object file that hold AVX code; inline functions and templates have sections of their own."""
    done = execute([tool("objdump"), "-d", "--no-show-raw-insn", path], folder)
    assert done.returncode == 0, done.stdout
    found, section = [], ""
    for line in done.stdout.splitlines():
        if line.startswith("Disassembly of section "):
            section = line.removeprefix("Disassembly of section ").rstrip(":")
        elif re.search(r"%[yz]mm|\tv[a-z0-9]+ ", line) and section not in found:
            found.append(section)
    return found


def test_a_wrong_bit_is_found(native: Path, cases: Path, tmp_path: Path) -> None:
    lines = cases.read_text().splitlines()
    for number in (0, next(i for i, line in enumerate(lines) if line.startswith("update"))):
        words = lines[number].split()
        wrong = [*words[:-1], f"{int(words[-1], 16) ^ 1:x}"]
        (tmp_path / "wrong.txt").write_text(" ".join(wrong) + "\n")
        done = execute([native, tmp_path / "wrong.txt"], tmp_path)
        assert done.returncode == 1 and "expected" in done.stdout, done.stdout


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # bits do not depend on how it is optimised
    return build(tool("aarch64-linux-gnu-g++"), tmp_path_factory.mktemp("arm"), "-static", "-fopenmp", "-O1")


@pytest.mark.parametrize(("cpu", "lacks"), [("max", set()), ("cortex-a72", {"neon-bf16"})])
def test_arm_under_emulation(arm: Path, cases: Path, tmp_path: Path, cpu: str, lacks: set[str]) -> None:
    """One program, on a CPU with products of bfloat16 and on one without."""
    done = execute([tool("qemu-aarch64-static"), "-cpu", cpu, arm, cases], tmp_path)
    assert paths(done) == {"neon-bf16", "neon", "baseline"} - lacks and paths(done, "refused") == lacks
    assert paths(done, "chosen") == {"neon" if lacks else "neon-bf16"}


def test_products_of_bfloat16_stay_in_the_file_of_neon(arm: Path, tmp_path: Path) -> None:
    for path in sorted(arm.parent.glob("*.o")):
        done = execute([tool("aarch64-linux-gnu-objdump"), "-d", "--no-show-raw-insn", path], tmp_path)
        assert done.returncode == 0, done.stdout
        assert bool(re.search(r"\tbf(dot|mmla|cvt)", done.stdout)) is (path.stem == "neon"), path


def test_sums_of_bfdot_are_rounded_to_odd() -> None:
    """By hand: exact sums stay, others go to the odd one of their neighbours, above or below; subnormal numbers are 0."""
    big, tiny = 2.0**24, 2.0**-126
    for x, expected in (
        ((big, 2, 2, 0), big + 4),
        ((big, 1, 0, 0), big + 2),
        ((big, 1, 2, -1), big + 2),
        ((2, 1, big, 2), big + 6),
        ((big, tiny, -big, 0), 2),
        ((tiny, -tiny / 2, 0, 0), tiny),
        ((tiny, -1.5 * tiny, 0, 0), 0),
    ):
        for sign in (1, -1):
            rows = sign * torch.tensor([x], dtype=torch.bfloat16)
            assert bfdot.chain(rows, torch.ones(1, 4, dtype=torch.bfloat16)).item() == sign * expected, x


def test_headers_alone_with_the_host_compiler(cases: Path, tmp_path: Path) -> None:
    program = tmp_path / "headers"
    done = execute([tool("g++"), *FLAGS, "-DBLOCKZO_HEADERS_ONLY", PROGRAM, "-o", program], tmp_path)
    assert done.returncode == 0, done.stdout
    paths(execute([program, cases], tmp_path))


if NVCC:
    CUDA = [NVCC, "-std=c++17", "-x", "cu", "-arch=sm_90", "-DBLOCKZO_HEADERS_ONLY", f"-I{CSRC / 'include'}", PROGRAM]

    def test_nvcc_host_code_gives_the_bits(cases: Path, tmp_path: Path) -> None:
        program = tmp_path / "headers"
        done = execute([*CUDA, "-Xcompiler", "-ffp-contract=off", "-cudart", "static", "-o", program], tmp_path)
        assert done.returncode == 0, done.stdout
        paths(execute([program, cases], tmp_path))

    def test_nvcc_device_code_is_exact(tmp_path: Path) -> None:
        """Nothing fused, nothing flushed: each operation of the contract is one rounded instruction."""
        for kind in ("cubin", "ptx"):
            done = execute([*CUDA, f"-{kind}", "-o", tmp_path / kind], tmp_path)
            assert done.returncode == 0, done.stdout
        text = (tmp_path / "ptx").read_text()
        assert "mul.rn.f32" in text and "sqrt.rn.f32" in text
        assert "fma" not in text and ".ftz" not in text and ".approx" not in text


def test_cases_cover_high_indices_and_both_distributions() -> None:
    lines = [line.split() for line in noise_cases()]
    assert {line[1] for line in lines} == {"rademacher", "gaussian"}
    assert max(int(line[5]) for line in lines) > 1 << 61
    assert sys.maxsize > 1 << 61
