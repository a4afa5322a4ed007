"""Every Triton kernel that is compiled ahead of time, with its budgets: one table.

    python tests/aot/kernels.py [--arch 90] [--slow] [--only products]      compiles and prints what was found, as JSON

Run as a program: triton must be imported without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ARCHES = (80, 90, 100)
FLOATS = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel. `registers` is a ceiling; `per_element` one of SASS instructions, all branches counted,
    over the elements of a thread; `loads` and `stores`: least number of 128-bit accesses of global memory.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    constants: dict[str, object]
    aligned: tuple[str, ...] = ()
    registers: int = 255
    per_element: float | None = None
    elements: int = 0
    loads: int = 0
    stores: int = 0
    options: dict[str, int] = field(default_factory=dict)
    needs: dict[int, str] = field(default_factory=dict)
    """Architecture -> an instruction that must be there."""
    loop: dict[int, float] = field(default_factory=dict)
    """Architecture -> ceiling of SASS instructions of the main loop, over `elements`."""
    arches: tuple[int, ...] = ARCHES
    short: tuple[int, ...] = ARCHES
    """Those of `arches` that it is always compiled for; the others are left to the long form of the tests."""

    def slow(self, arch: int) -> bool:
        return arch not in self.short


MIDDLE = (90,)
"""For kernels without matrix instructions, of which every generation makes nearly the same code."""


def _moves() -> list[Case]:
    tables = {"tensors": "*i64", "chunks": "*i32", "steps": "*i32", "terms": "*i32", "step_count": "i32"}
    cases = []
    for dtype, bytes_each in FLOATS.items():
        for gaussian in (False, True):
            for mode, name in ((0, "perturb"), (2, "update")):
                constants = {
                    "DTYPE": dtype,
                    "MODE": mode,
                    "GAUSSIAN": gaussian,
                    "STOCHASTIC": False,
                    "JOINS": False,
                    "ALIGNED": True,
                    "BLOCK": 4096,
                    "RUNS": False,
                }
                cases.append(
                    Case(
                        f"{name} {dtype} {'gaussian' if gaussian else 'rademacher'}",
                        "moves.move",
                        tables,
                        constants,
                        tuple(t for t, kind in tables.items() if kind.startswith("*")),
                        registers=176 if gaussian and mode else 128,
                        elements=16,
                        options={"num_warps": 8},
                        # an update has its first direction and the others apart, and runs one of the two at a time
                        per_element=80 if gaussian else 44 if mode else 40,
                        # those of bfloat16 differ in one conversion, and are always compiled
                        short=() if dtype == "fp16" else MIDDLE,
                        loads=16 * bytes_each // 16,
                        stores=16 * bytes_each // 16,
                    )
                )
    constants = {"DTYPE": "bf16", "MODE": 2, "GAUSSIAN": False, "ALIGNED": True, "BLOCK": 4096}
    for name, kind, registers in (
        ("stochastic", {"STOCHASTIC": True, "JOINS": False, "RUNS": False}, 128),
        ("of runs", {"STOCHASTIC": False, "JOINS": False, "RUNS": True}, 128),
        # the sum of a step lives on through the next one; 154 on sm_80
        ("of seeds", {"STOCHASTIC": False, "JOINS": True, "RUNS": False}, 160),
    ):
        cases.append(
            Case(
                f"update bf16 {name}",
                "moves.move",
                tables,
                constants | kind,
                tuple(tables)[:4],
                registers=registers,
                options={"num_warps": 8},
                short=MIDDLE,
            )
        )
    return cases


def _rows() -> list[Case]:
    signature = {"out": "*bf16", "source": "*bf16", "rows": "*i64", "steps": "*i32", "terms": "*i32"}
    signature |= {"start": "i64", "apart": "i32", "width": "i32", "blocks": "i32", "stream": "i32"}
    return [
        Case(
            f"rows bf16 {'gaussian' if gaussian else 'rademacher'} {'aligned' if aligned else 'anywhere'}",
            "spans.move_rows",
            signature,
            {"OUT": "bf16", "GATHER": not aligned, "GAUSSIAN": gaussian, "ALIGNED": aligned, "BLOCK": 4096},
            ("out", "source", "rows", "steps", "terms", "apart", "width"),
            registers=168,
            short=MIDDLE,
        )
        for gaussian in (False, True)
        for aligned in (False, True)
    ]


def _low_rank() -> list[Case]:
    signature = {"weights": "*bf16", "a": "*fp32", "b": "*fp32", "steps": "*i32", "terms": "*i32", "step_count": "i32"}
    sizes = "rows columns blocks row_stride column_stride a_count b_count row_step column_step"
    signature |= dict.fromkeys(sizes.split(), "i32") | {"index": "i64", "width": "i32", "stream": "i32", "norm": "fp32"}
    constants = {"DTYPE": "bf16", "JOINS": True, "ROWS": 8, "COLUMNS": 128}
    moves = [
        Case(
            f"low rank {name}",
            "low_rank.move_low_rank",
            signature,
            constants | kind,
            ("weights", "a", "b", "steps", "terms", "row_stride"),
            registers=192,
            short=MIDDLE,
        )
        for name, kind in (
            ("perturb", {"RANK": 1, "MODE": 0, "STOCHASTIC": False}),
            ("update", {"RANK": 4, "MODE": 2, "STOCHASTIC": True}),
        )
    ]
    told = {
        "out": "*fp32",
        "draws": "*i32",
        "first_block": "i64",
        "lead": "i32",
        "count": "i32",
        "blocks": "i32",
        "stream": "i32",
    }
    factors = [
        Case(
            f"low rank factors {'gaussian' if gaussian else 'rademacher'}",
            "low_rank.fill_factors",
            told,
            {"GAUSSIAN": gaussian, "BLOCK": 1024},
            ("out", "draws"),
            registers=64,
            short=MIDDLE,
        )
        for gaussian in (False, True)
    ]
    return [*moves, *factors]


def _project() -> list[Case]:
    signature = {
        "sums": "*fp64",
        "delta": "*bf16",
        "count": "i64",
        "chunk_count": "i32",
        "steps": "*i32",
        "terms": "*i32",
        "direction_count": "i32",
    }
    signature["stream"] = "i32"
    return [
        Case(
            f"project bf16 {'gaussian' if gaussian else 'rademacher'}",
            "project.project",
            signature,
            {"GAUSSIAN": gaussian, "CHUNKS": 8},
            ("sums", "delta", "steps", "terms"),
            short=MIDDLE,
        )
        for gaussian in (False, True)
    ]


LINEAR = {"out": "*bf16", "x": "*bf16", "weight": "*bf16", "bias": "*bf16", "tasks": "*i32", "steps": "*i32"}
LINEAR |= {"terms": "*i32", "tokens": "i32", "rows": "i32", "width": "i32", "x_group": "i32", "x_row": "i32"}
LINEAR |= {"apart": "i32", "start": "i64", "bias_group": "i32", "stream": "i32"}
ALIGNED = (*list(LINEAR)[:7], "rows", "width", "x_group", "x_row", "apart")
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def _products() -> list[Case]:
    """Each tile that a GPU is given, with as many directions as a program of it takes; for Hopper every other form too."""
    from blockzo.kernels.products import SLOTS

    cases = []
    for number, arch in enumerate(ARCHES):
        for key, most in SLOTS.items():
            if not most[number]:
                continue
            cases.append(_product(arch, key, most[number]))
            if key[2]:
                cases.append(_product(arch, key, most[number], exact=True))
            if arch == 90:
                every = [(slots, sides) for slots in range(1, most[number] + 1) for sides in (1, 2)]
                cases += [_product(arch, key, *form) for form in every if form != (most[number], 2)]
                cases.append(_product(arch, key, most[number], dtype="fp16", parts=True))
    signature = {"out": "*bf16", "sums": "*fp32", "bias": "*bf16"}
    signature |= dict.fromkeys(("blocks", "lines", "tokens", "rows", "parts", "bias_group"), "i32")
    aligned = ("out", "sums", "bias", "rows")
    constants = {"BIAS": True, "BLOCK": 1024}
    cases.append(Case("parts of products", "products.add_parts", signature, constants, aligned, 64, loads=2, stores=1))
    return cases


def _product(
    arch: int,
    key: tuple[int, bool, bool],
    slots: int,
    sides: int = 2,
    dtype: str = "bf16",
    parts: bool = False,
    exact: bool = False,
) -> Case:
    """`parts`: into float32 sums of parts of K, without a bias. `exact`: Gaussian numbers of the contract's own arithmetic."""
    from blockzo.kernels.products import tiles

    tokens, shared, gaussian = key
    signature = LINEAR | dict.fromkeys(("task_count", "bands", "groups", "parts", "span"), "i32")
    signature |= dict.fromkeys(("x", "weight", "bias"), f"*{dtype}") | {"out": "*fp32" if parts else f"*{dtype}"}
    tile = tiles(tokens, gaussian, slots, sides == 2, shared, arch // 10)
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    kind, name = "gaussian" if gaussian else "rademacher", "shared" if shared else "own"
    kind, approximate = f"exact {kind}" if exact else kind, gaussian and not exact
    usual = (sides, dtype, parts) == (2, "bf16", False)
    budget = {80: 23.5, 90: 20, 100: 17.5} if approximate else {80: 50, 90: 47, 100: 44}
    form = "" if usual else f", {sides} sides{', parts' if parts else ''}"
    return Case(
        f"products {dtype} {tokens} tokens {kind} {name} input, {slots} directions{form}",
        "products.products",
        signature,
        {"BIAS": not parts, "GAUSSIAN": gaussian, "APPROXIMATE": approximate, **tile},
        (*ALIGNED, "span"),
        elements=tile["ROWS"] * tile["WIDTH"] * slots // (32 * options["num_warps"]),
        loads=4,
        needs=MATRIX,
        loop=(budget if gaussian else {80: 8, 90: 8.5, 100: 7}) if usual and _most(arch, key) == slots else {},
        options=options,
        arches=(arch,),
        short=(arch,)
        if usual
        and _most(arch, key) == slots
        and tokens == _largest(arch, shared, gaussian)
        and (not exact or arch == 90)
        else (),
    )


def _most(arch: int, key: tuple[int, bool, bool]) -> int:
    from blockzo.kernels.products import SLOTS

    return SLOTS[key][ARCHES.index(arch)]


def _largest(arch: int, shared: bool, gaussian: bool) -> int:
    """Tokens of the largest tile that a GPU is given, which needs most registers; those of 32 are few and like the others."""
    return max(tokens for tokens in (16, 64) if _most(arch, (tokens, shared, gaussian)))


def cases() -> list[Case]:
    return [*_moves(), *_rows(), *_low_rank(), *_project(), *_products()]


def compile_case(case: Case, arch: int) -> dict[str, object]:
    import importlib

    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = case.kernel.split(".")
    kernel = getattr(importlib.import_module(f"blockzo.kernels.{module}"), name)
    types = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
    constants = {k: types.get(v, v) if isinstance(v, str) else v for k, v in case.constants.items()}
    signature = {n: case.signature.get(n, "constexpr") for n in kernel.arg_names}
    places = {n: k for k, n in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        signature,
        {(places[n],): value for n, value in constants.items()},
        {(places[n],): [["tt.divisibility", 16]] for n in case.aligned},
    )
    options = {"num_warps": 4, "enable_fp_fusion": False, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return measure(compiled.asm["cubin"], compiled.asm["ptx"])


def measure(cubin: bytes, ptx: str) -> dict[str, object]:
    import triton

    from tests.aot.hazards import Listing, loads_together

    tools = triton.knobs.nvidia
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([tools.nvdisasm.path, "-c", file.name], capture_output=True, text=True, check=True).stdout
    listing = Listing.of(sass)
    resources = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    words = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", sass, flags=re.M)

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, word)) for word in words)

    return {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]) + int(resources["LOCAL"]),
        "instructions": sum(not word.startswith("NOP") for word in words),
        "loop": len(listing.main_loop()),
        "hazards": listing.hazards(),
        "local": count(r"(LDL|STL)"),
        # of global memory, whatever their width
        "loads": count(r"(LDG|UTMALDG|UBLKCP)"),
        "stores": count(r"(STG|RED|UTMASTG)"),
        "loads_128": count(r"LDG(STS)?\..*128"),
        "together": loads_together(listing.lines),
        "stores_128": count(r"STG\..*128"),
        # a rounded square root is refined by fused steps of its own
        "fused": len(re.findall(r"\bfma\.", ptx)) + (0 if "sqrt.rn" in ptx else count(r"FFMA")),
        "approximate": sorted(set(re.findall(r"\b(\w+)\.approx\b", ptx))),
        "matrix": sorted({word.split(".")[0] for word in words if re.match(r"(HMMA|HGMMA|UTC.*MMA)", word)}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHES))
    parser.add_argument("--slow", action="store_true", help="every case, those of the long tests too")
    parser.add_argument("--only", default="", help="cases whose name has this")
    given = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set; expected it unset, as the interpreter cannot compile")
    found = {
        f"{case.name} sm_{arch}": compile_case(case, arch)
        for arch in given.arch
        for case in cases()
        if arch in case.arches and given.only in case.name and (given.slow or not case.slow(arch))
    }
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
