"""Instructions, passes over the weights and allocations of the CPU kernels: the extension's own objects in a small program,
counted by callgrind (`csrc/tests/counts.cpp`).
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.packaging.builds import extension_objects

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SETS = ("avx2", "baseline")
"""Those that valgrind knows."""
WEIGHTS = 128 * 512
"""Of a case."""
FLAGS = "-O3 -std=c++17 -ffp-contract=off -fno-math-errno -fvisibility=hidden -fPIC -Wall -Wno-psabi".split()
FLAGS += [f"-I{CSRC / 'include'}", f"-I{CSRC / 'cpu'}"]
WRAPPED = "-Wl," + ",".join(f"--wrap={name}" for name in ("malloc", "calloc", "realloc", "aligned_alloc"))
CACHES = ("--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=65536,16,64")
"""Of one imagined machine, whatever this one has. The last level holds less than the weights of a case."""
LINE = 64


class Missing(Exception):
    """A tool or the built extension is not there."""


def run(command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(map(str, command))}` ended with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def objects() -> list[Path]:
    """Those that the extension is linked of, brought up to date."""
    if platform.machine() != "x86_64":
        raise Missing(f"the sets that are counted are those of x86_64, and this is {platform.machine()}")
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/callgrind.h").is_file():
        raise Missing("valgrind and its headers are not installed; .ci/run lists the packages")
    found = extension_objects()
    if not found:
        raise Missing("build/native holds no build of the extension, or ninja was not found: scripts/setup.sh")
    return found


def compiler_of(path: Path) -> str:
    """Who made an object file, with the major version: "GCC 12"."""
    found = re.search(rb"(GCC): \([^)]*\) (\d+)\.|(clang) version (\d+)\.", path.read_bytes())
    if found is None:
        raise RuntimeError(f"{path.name} does not say which compiler made it")
    return " ".join(part.decode() for part in found.groups() if part)


def section(made: Sequence[Path]) -> str:
    return f"kernels {platform.machine()} {compiler_of(next(path for path in made if 'baseline' in path.name))}"


def compiled(source: Path, folder: Path, *options: str) -> Path:
    target = folder / f"{source.stem}.o"
    run(["g++", *FLAGS, *options, "-c", source, "-o", target], folder)
    return target


def driver(folder: Path) -> Path:
    """What calls every kernel once; what it does itself is not counted."""
    return compiled(CSRC / "tests" / "counts.cpp", folder, "-O1")


def linked(made: Sequence[Path], folder: Path) -> Path:
    program = folder / "counts"
    run(["g++", *made, WRAPPED, "-fopenmp", "-pthread", "-o", program], folder)
    return program


def counted(program: Path, folder: Path, *sets: str, only: str = "") -> dict[str, dict[str, float]]:
    """What callgrind counts in each case whose name begins with `only`."""
    for old in folder.glob("callgrind.out*"):
        old.unlink()
    tool = ["--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={folder}/callgrind.out"]
    # the environment and the program's name lie on its stack, and would move what shares lines of the caches with the weights
    valgrind = shutil.which("valgrind") or "valgrind"
    text = run([valgrind, *tool, *CACHES, f"./{program.name}", f"--only={only}", *sets], program.parent, {})
    own = {}
    for line in text.splitlines():
        if "\t" in line:
            label, weights, allocations, size = line.split("\t")
            own[label] = int(weights), int(allocations), int(size)
    found = {}
    for dump in folder.glob("callgrind.out.*"):
        told = dump.read_text(errors="replace")
        label = re.search(r"^desc: Trigger: Client Request: (.*)$", told, re.M)
        events, totals = re.search(r"^events: (.*)$", told, re.M), re.search(r"^(?:totals|summary): (.*)$", told, re.M)
        if label is None or events is None or totals is None or label[1] not in own:
            continue
        numbers = dict(zip(events[1].split(), map(int, totals[1].split()), strict=False))
        weights, allocations, size = own[label[1]]
        counts: dict[str, float] = {"instructions": numbers["Ir"], "allocations": allocations, "allocated bytes": size}
        if weights:
            # lines of memory that are fetched, in units of the weights: a result and masks beside them count too
            counts["passes"] = round((numbers["DLmr"] + numbers["DLmw"]) * LINE / weights, 2)
        found[label[1].replace("|", " ")] = counts
    if set(found) != {label.replace("|", " ") for label in own}:
        raise RuntimeError(f"callgrind dumped {len(found)} of {len(own)} cases\n{text[-2000:]}")
    return found
