"""The models of the SPZO paper at their true sizes, random weights: what a step costs there.

    python benchmarks/paper.py [--models roberta-large opt-1.3b llama-3.2-3b] [--methods ...] [--only flops bytes memory ...]

flops     a step by formula (benchmarks/shapes/formulas.py) and by the library's counter, on the device "meta"; what SPZO saves.
bytes     what a client sends and is sent in a round, encoded.
memory    peak of a step over inference, each in a process of its own, and the FLOPs that this step counted.
training  the same of all weights by SGD and AdamW, measured where it fits in --most GiB, else by a formula that is checked with
          two layers.
time      a step over one plain forward, in turns: CPU seconds of this process, one thread.

A part that is in the results is not run again (`--again`): the command can be stopped and given again. Memory and time are of
MEASURED unless --methods names others.
"""

from __future__ import annotations

import argparse
import os
import sys
import time as clock
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import blockzo as bz
from benchmarks.harness import KEY, RESULTS, Spread, Table, paired, read
from benchmarks.shapes import formulas
from benchmarks.shapes.formulas import METHODS, STATES, Method
from benchmarks.shapes.methods import blocks_of, optimiser, rule_of
from benchmarks.shapes.models import LOSSES, PAPER, SHAPES, Shape, batch, build, with_layers
from benchmarks.shapes.peaks import measured
from benchmarks.shapes.wire import round_bytes

MEASURED = ("MeZO", "n-SPSA 4", "one-sided 5", "FZOO 8", "SPZO 1 x 4 cut 0.5")
CHECK_LAYERS = 2
OFF, PEAK = 0.03, 1.05


class Parts:
    """The parts of one run, and what of them is in the results already."""

    def __init__(self, table: Table, options: argparse.Namespace) -> None:
        self.table, self.options = table, options
        self.rows, self.tokens = options.batch
        self._inference: dict[str, int] = {}
        self.held = set() if options.again else {tuple(row[name] for name in KEY) for row in read(table.path)}

    def methods(self, default: tuple[str, ...]) -> list[Method]:
        return [METHODS[name] for name in self.options.methods or default]

    def case(self, shape: Shape, what: str) -> str:
        loss = "" if self.options.loss == "words" else f", {self.options.loss} loss"
        return f"{shape.case} {self.rows} x {self.tokens}{loss}, {what}"

    def wanted(self, case: str, metric: str) -> bool:
        return (self.table.benchmark, case, metric, self.table.machine) not in self.held

    def note(self, case: str, metric: str, value: float | Spread, unit: str, at_most: float | None = None) -> None:
        self.table.add(case, metric, value if isinstance(value, Spread) else Spread.of([value]), unit, at_most=at_most)

    def save(self) -> None:
        if not self.options.no_save:
            self.table.save()

    # --- the parts

    def flops(self, name: str) -> None:
        shape = SHAPES[name]
        wanted = [
            m for m in self.methods(tuple(METHODS)) if self.wanted(self.case(shape, m.case), "counter off the formula")
        ]
        model = build(shape, "meta") if wanted else None
        data, cut = batch(shape, self.rows, self.tokens, "meta"), {}
        for method in wanted:
            assert model is not None
            if method.split not in cut:
                cut[method.split] = blocks_of(model, method.split)
            loss, case = LOSSES[self.options.loss], self.case(shape, method.case)
            counted = bz.cost(cut[method.split], rule_of(method), batch=data, loss_fn=loss).flops
            if method.split is not None:
                plain = bz.cost(cut[method.split], bz.SPSA(method.late // method.early), batch=data, loss_fn=loss).flops
                self.note(
                    case,
                    "FLOPs saved by the paper's formula",
                    formulas.saving(shape, method, self.rows, self.tokens),
                    "x",
                )
                self.note(case, "FLOPs saved as counted", plain / counted, "x")
            stated = formulas.step_flops(shape, method, self.rows, self.tokens)
            self.note(case, "GFLOP a step by formula", stated / 1e9, "GFLOP")
            self.note(case, "counter off the formula", abs(counted / stated - 1), "of 1", at_most=OFF)
            self.save()

    def peak(self, name: str, what: str, layers: int | None = None) -> dict[str, int]:
        begin = clock.monotonic()
        found = measured(name, what, self.rows, self.tokens, self.options.loss, layers)
        print(f"  {name} {what}: {found['peak'] / 2**30:.2f} GiB, {clock.monotonic() - begin:.0f} s", flush=True)
        return found

    def inference(self, name: str) -> int:
        """Peak bytes; measured once a run, and again by a later one."""
        if name not in self._inference:
            self._inference[name] = self.peak(name, "inference")["peak"]
        return self._inference[name]

    def memory(self, name: str) -> None:
        shape = SHAPES[name]
        for method in self.methods(MEASURED):
            case = self.case(shape, method.case)
            if self.wanted(case, "peak RSS over inference"):
                plain, found = self.inference(name), self.peak(name, method.case)
                if self.options.loss == "words":
                    stated = formulas.step_flops(shape, method, self.rows, self.tokens)
                    self.note(
                        case, "step's own count off the formula", abs(found["flops"] / stated - 1), "of 1", at_most=OFF
                    )
                self.note(case, "peak RSS over inference", found["peak"] / plain, "x", at_most=PEAK)
                self.save()

    def training(self, name: str) -> None:
        for optimizer in STATES:
            self.first_order(name, optimizer)

    def first_order(self, name: str, optimizer: str) -> None:
        shape = SHAPES[name]
        case = self.case(shape, optimizer)
        if not self.wanted(case, "peak RSS over inference"):
            return
        stated = formulas.first_order_bytes(shape, optimizer, self.rows, self.tokens)
        expected = self.inference(name) + stated - shape.dtype.itemsize * formulas.parameters(shape)
        if expected <= self.options.most * 2**30:
            found = self.peak(name, optimizer)["peak"]
            self.note(case, "formula over measured", expected / found, "x")
            self.note(case, "peak RSS over inference", found / self.inference(name), "x")
        else:
            small = with_layers(shape, CHECK_LAYERS)
            plain = self.peak(name, "inference", CHECK_LAYERS)["peak"]
            found = self.peak(name, optimizer, CHECK_LAYERS)["peak"]
            held = shape.dtype.itemsize * formulas.parameters(small)
            told = plain + formulas.first_order_bytes(small, optimizer, self.rows, self.tokens) - held
            self.note(case, f"formula over measured, {CHECK_LAYERS} layers", told / found, "x")
            self.note(case, "peak RSS over inference", expected / self.inference(name), "x (formula)")
        self.save()

    def bytes(self, name: str) -> None:
        shape = SHAPES[name]
        for method in self.methods(tuple(METHODS)):
            case = self.case(shape, method.case)
            if self.wanted(case, "bytes down a round"):
                up, down = round_bytes(method)
                self.note(case, "bytes up a round", up, "bytes")
                self.note(case, "bytes down a round", down, "bytes")
        case = self.case(shape, "federated averaging of all weights")
        if self.wanted(case, "bytes down a round"):
            size = shape.dtype.itemsize * formulas.parameters(shape)
            self.note(case, "bytes up a round", size, "bytes")
            self.note(case, "bytes down a round", size, "bytes")
        self.save()

    def time(self, name: str) -> None:
        shape, loss = SHAPES[name], LOSSES[self.options.loss]
        metric = "CPU seconds of a step over a plain forward"
        wanted = [m for m in self.methods(MEASURED) if self.wanted(self.case(shape, m.case), metric)]
        if not wanted:
            return
        model, data = build(shape), batch(shape, self.rows, self.tokens)

        def forward() -> None:
            with torch.no_grad():
                float(loss(model, data))

        for method in wanted:
            zo = optimiser(model, loss, method)
            sides = {"forward": forward, "step": lambda zo=zo: zo.step(data)}
            times = paired(sides, self.options.rounds, warmup=1, clock=clock.process_time)
            ratios = [a / b for a, b in zip(times["step"], times["forward"], strict=True)]
            whole = sum(formulas.block_flops(shape, None, self.rows, self.tokens))
            share = formulas.step_flops(shape, method, self.rows, self.tokens) / whole
            case = self.case(shape, method.case)
            self.note(case, "over plain forwards of as many FLOPs", Spread.of([r / share for r in ratios]), "x")
            self.note(case, metric, Spread.of(ratios), "x")
            self.save()


PARTS = ("flops", "bytes", "memory", "training", "time")
"""Cheap ones first."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(PAPER), choices=list(SHAPES))
    parser.add_argument("--methods", nargs="*", default=[], choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--batch", nargs=2, type=int, default=(2, 32), metavar=("ROWS", "TOKENS"))
    parser.add_argument("--loss", default="words", choices=list(LOSSES), help="of two label words, or of all positions")
    parser.add_argument(
        "--most", type=float, default=11.0, help="GiB that first-order training may take to be measured"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="also what the results have")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = Parts(Table("paper", options.csv), options)
    for part in (part for part in PARTS if part in options.only):
        for name in options.models:
            getattr(parts, part)(name)


if __name__ == "__main__":
    main()
