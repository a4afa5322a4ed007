"""Host time of a perturbed forward beside a plain one, where a GPU would do the rest: 24 layers of tiny width, no GPU needed.

    python benchmarks/host.py [--rounds 15] [--width 128]

The GPU's kernels serve tensors of the CPU and their launches do nothing, so what is left of a perturbed forward is Python and
torch's dispatch. Products of the plain forward are run, by one thread: the wider the layers, the more that flatters the ratio.
CPU seconds of the process, so other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import blockzo as bz
from benchmarks.harness import Spread, Table, paired
from blockzo.ops.backends import choice
from blockzo.perturb import parameters

GOAL = 2.0

Note = Callable[[str, tuple[int, ...]], object]


class Nothing:
    """In place of a kernel."""

    def __init__(self, name: str, note: Note) -> None:
        self.name, self.note = name, note

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.note(self.name, grid)
        return lambda *arguments, **options: None


def without_launches(note: Note = lambda name, grid: None) -> ExitStack:
    """The GPU's backend for all tensors, and nothing in place of its kernels; `note` is told each launch."""
    from blockzo.ops.backends.gpu import kernels, products

    stack = ExitStack()
    for module in (kernels, products):
        for name, value in vars(module).items():
            if type(value).__module__.startswith("triton.runtime"):
                stack.enter_context(mock.patch.object(module, name, Nothing(name, note)))
    stack.enter_context(mock.patch.object(choice, "for_tensor", lambda tensor: kernels))
    # weights that are tiny here are large where a GPU is of use
    stack.enter_context(mock.patch.object(parameters, "SMALL", 1024))
    return stack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--csv", type=Path, help="where the rows go; benchmarks/results.csv where it is left out")
    given = parser.parse_args()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = given.width
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=width,
        num_hidden_layers=given.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=2 * width,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(0, 128, (1, 8))
    noise = bz.Noise(3)

    def plain() -> None:
        with torch.no_grad():
            model(input_ids=ids, labels=ids)

    def moved(directions: list[int], scales: list[float]) -> None:
        with torch.no_grad():
            bz.perturbed_losses(
                model,
                noise,
                directions,
                scales,
                lambda: model(input_ids=ids, labels=ids).loss,
                max_group=len(directions),
            )

    sides = {
        "plain": plain,
        "moved": lambda: moved([0], [1e-3]),
        "both signs": lambda: moved([0, 0], [1e-3, -1e-3]),
    }
    with without_launches():
        times = paired(sides, given.rounds, clock=time.process_time)
    table = Table("host", **({"path": given.csv} if given.csv else {}))
    case = f"forward of {given.layers} layers of width {width}, bfloat16, 8 tokens, launches left out"
    for side, metric in (("moved", "moved over plain"), ("both signs", "both signs in one over plain")):
        ratios = Spread.of([a / b for a, b in zip(times[side], times["plain"], strict=True)])
        table.add(case, metric, ratios, "x", at_most=GOAL if side == "moved" else 2 * GOAL)
    table.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
