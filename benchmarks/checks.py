"""What looking at every evaluation costs: a step with and without the fingerprints and counts of `blockzo.perturb.passes`.

    python benchmarks/checks.py [--rounds 15] [--no-save]

MiniLM-L6 with mean pooling and a linear head, 16 sentences of 32 tokens; both sides take turns, and the time inside the
checks is clocked by itself. `first` is the step that tries
all cuts (docs/kept.md), over a later one.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import blockzo as bz
from benchmarks.harness import Spread, Table, paired
from blockzo.finetune.models.loading import load, resolve
from blockzo.perturb import passes

ROWS, TOKENS = 16, 32
METHODS = {
    "SPZO 1 x 4, coupled, in half": (bz.SPZO(1, 4), "auto"),
    "SPZO 1 x 8, decoupled, head": (bz.SPZO(1, 8, "decoupled"), "head"),
}


def optimiser(model: torch.nn.Module, head: torch.Tensor, method: Any, cut: Any) -> bz.ZO:
    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        out = model(**batch, output_hidden_states=False)
        pooled = out[0].mean(1)
        return torch.nn.functional.cross_entropy(pooled @ head, torch.arange(ROWS) % 2)

    return bz.ZO(model, loss, method, bz.Blocks(model, cut), lr=0.0, eps=1e-3)


def unwatched(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with (
            mock.patch.object(passes, "fingerprint", lambda leaves: torch.zeros(0, 3)),
            mock.patch.object(passes.Run, "_called", lambda *call: None),
            mock.patch.object(passes.Run, "_returned_output", lambda *call: None),
            mock.patch("blockzo.optim.reuse.Reuse.accepts", lambda self, path: True),
        ):
            return step()

    return run


def inside(step: Callable[[], object], rounds: int) -> list[float]:
    """Share of each step's time that passes inside the checks, by a clock around each of their functions."""
    spent = [0.0]

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*given)
            finally:
                spent[0] += time.perf_counter() - begin

        return run

    shares = []
    names = ("fingerprint", "difference")
    methods = ("_called", "_returned_output")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(passes, name, clocked(getattr(passes, name))))
        for name in methods:
            plain = getattr(passes.Run, name)
            stack.enter_context(mock.patch.object(passes.Run, name, clocked(plain)))
        for _ in range(rounds):
            spent[0] = 0.0
            begin = time.perf_counter()
            step()
            shares.append(spent[0] / (time.perf_counter() - begin))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    table = Table("checks")
    loaded = load(resolve("minilm-l6", None, print), "float32", head="mean", classes=2)
    encoder = getattr(loaded.model, "encoder", loaded.model)
    torch.manual_seed(0)
    ids = torch.randint(1000, 20000, (ROWS, TOKENS))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, (method, cut) in METHODS.items():
        zo = optimiser(encoder, torch.randn(encoder.config.hidden_size, 2), method, cut)
        begin = time.perf_counter()
        zo.step(batch)
        first = time.perf_counter() - begin

        def step(zo: bz.ZO = zo) -> object:
            return zo.step(batch)

        times = paired({"watched": step, "unwatched": unwatched(step)}, given.rounds)
        ratios = [a / b - 1 for a, b in zip(times["watched"], times["unwatched"], strict=True)]
        # the machine's own disturbances are larger than what is sought
        table.add(f"MiniLM, 16 x 32, {name}", "step with checks over one without, less 1", Spread.of(ratios), "")
        table.add(
            f"MiniLM, 16 x 32, {name}", "share inside checks", Spread.of(inside(step, given.rounds)), "", at_most=0.01
        )
        table.add(
            f"MiniLM, 16 x 32, {name}", "first step over a later one", Spread.of([first / min(times["watched"])]), "x"
        )
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
