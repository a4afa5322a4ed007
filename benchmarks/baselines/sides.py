"""Every baseline and blockzo's own form of it, on one model at equal settings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import blockzo as bz
from benchmarks.baselines import decomfl, fedkseed
from benchmarks.baselines.backprop import Backprop, add_lora
from benchmarks.baselines.fzoo import EagerFZOO
from benchmarks.baselines.mezo import EagerMeZO
from benchmarks.baselines.noise import Loss
from benchmarks.baselines.spsa import EagerSPSA
from benchmarks.shapes.formulas import Method
from benchmarks.shapes.wire import round_bytes
from blockzo.methods.base import Method as Rule

LR, EPS, SEED = 1e-7, 1e-3, 0
DIRECTIONS, SHARED, BATCHED, SEEDS = 4, 5, 8, 4096
"""Of n-SPSA, of DeComFL, of FZOO; FedKSeed's K, as its paper recommends."""
TARGETS = ("q_proj", "v_proj")
SCALAR = 4


@dataclass(frozen=True)
class Side:
    """`step(batch)` is timed; `sent`: bytes a client sends a round; `flops`: of the last step, where the side counts them."""

    step: Callable[[Any], object]
    sent: int
    flops: Callable[[], int] | None = None


Make = Callable[[nn.Module, Loss], Side]


def _eager(kind: Any, directions: int) -> Make:
    """One that moves weights in place; with a client and a server, a scalar for each direction would travel."""
    return lambda model, loss: Side(kind(model, loss, LR, EPS, SEED, directions).step, SCALAR * directions)


def _decomfl(model: nn.Module, loss: Loss) -> Side:
    """A local step, and the replay of the round that came before."""
    client = decomfl.DeComFLClient(model, loss)

    def step(batch: Any) -> None:
        found = client.local([SEED], [batch], SHARED, LR, EPS)
        client.replay([SEED], found, LR)

    return Side(step, len(decomfl.message([[0.0] * SHARED])))


def _fedkseed(model: nn.Module, loss: Loss) -> Side:
    client, chance = fedkseed.FedKSeedClient(model, loss), random.Random(SEED)
    return Side(lambda batch: client.local(range(SEEDS), [batch], LR, EPS, chance), len(fedkseed.message([(0, 0.0)])))


def _backprop(checkpointing: bool = False, lora: bool = False) -> Make:
    def make(model: nn.Module, loss: Loss) -> Side:
        if lora:
            add_lora(model, TARGETS)
        backprop = Backprop(model, loss, LR, checkpointing)
        return Side(backprop.step, backprop.message_bytes())

    return make


def _ours(rule: Rule, method: Method) -> Make:
    def make(model: nn.Module, loss: Loss) -> Side:
        zo = bz.ZO(model, loss, rule, lr=LR, eps=EPS)
        last: list[int] = []

        def step(batch: Any) -> None:
            last[:] = [zo.step(batch).flops]

        return Side(step, round_bytes(method)[0], lambda: last[0])

    return make


SIDES: dict[str, Make] = {
    "MeZO, eager": _eager(EagerMeZO, 1),
    "MeZO, blockzo": _ours(bz.MeZO(), Method("MeZO", 2, 2)),
    "n-SPSA 4, eager": _eager(EagerSPSA, DIRECTIONS),
    "n-SPSA 4, blockzo": _ours(bz.SPSA(DIRECTIONS), Method("n-SPSA 4", 8, 8)),
    "DeComFL 5, eager": _decomfl,
    "one-sided 5, blockzo": _ours(bz.OneSided(SHARED), Method("one-sided 5", 6, 6)),
    "FZOO 8, eager": _eager(EagerFZOO, BATCHED),
    "FZOO 8, blockzo": _ours(bz.FZOO(BATCHED), Method("FZOO 8", 9, 9)),
    "FedKSeed, eager": _fedkseed,
    "SPZO 1 x 4, blockzo": _ours(bz.SPZO(1, 4), Method("SPZO 1 x 4", 2, 8, 0.5)),
    "AdamW": _backprop(),
    "AdamW, checkpointing": _backprop(checkpointing=True),
    "AdamW, LoRA": _backprop(lora=True),
    "AdamW, LoRA, checkpointing": _backprop(checkpointing=True, lora=True),
}
