"""Counts what the guard holds and compares it with counts.json, or records it.

python -m tests.guard [kernels] [steps] [sass] [cuda]             compares
python -m tests.guard --write [kernels] [steps] [sass] [cuda]     records what this compiler and these versions give
python -m tests.guard --print steps                               prints counts, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.guard.figures import NoFigures, check, write

KINDS = ("kernels", "steps", "sass", "cuda")
ROOT = Path(__file__).resolve().parents[2]
Counted = tuple[str, dict[str, dict[str, float]]]


def in_process(kind: str) -> Counted:
    """In a process of its own: what others have kept or set there does not count."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    if platform.machine() == "x86_64":
        environment["BLOCKZO_ISA"] = "avx2"
    command = [sys.executable, "-m", "tests.guard", "--print", kind]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    section, found = json.loads(done.stdout.splitlines()[-1])
    return section, found


def counted(kind: str) -> Counted:
    if kind == "steps":
        from tests.guard import steps

        return steps.section(), steps.counted()
    if kind in ("sass", "cuda"):
        from tests.guard import sass

        if kind == "sass":
            return sass.section(), sass.counted()
        if (compiler := sass.nvcc()) is None:
            raise SystemExit("no nvcc was found; put it on PATH or set CUDA_HOME")
        return sass.cuda_section(compiler), sass.cuda_counted(compiler)
    from tests.guard import kernels

    made = kernels.objects()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = kernels.linked([kernels.driver(folder), *made], folder)
        return kernels.section(made), kernels.counted(program, folder, *kernels.SETS)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"{', '.join(KINDS)}; all where left out")
    parser.add_argument("--write", action="store_true", help="records instead of comparing")
    parser.add_argument("--print", action="store_true", help="prints only")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(KINDS)}")
    status = 0
    for kind in given.kinds or KINDS:
        section, found = in_process(kind) if kind == "steps" and not given.print else counted(kind)
        if given.print:
            print(json.dumps([section, found]))
        elif given.write:
            write(section, found)
            print(f"{section}: {len(found)} recorded")
        else:
            try:
                check(section, found)
                print(f"{section}: {len(found)} as recorded")
            except (AssertionError, NoFigures) as reason:
                status = 1
                print(reason)
    return status


if __name__ == "__main__":
    sys.exit(main())
