"""The methods of `formulas.py` as blockzo runs them, and first-order training beside them."""

from __future__ import annotations

from torch import nn

import blockzo as bz
from benchmarks.shapes.formulas import Method
from benchmarks.shapes.models import Loss
from blockzo.methods.base import Method as Rule

LR, EPS = 1e-7, 1e-3
RULES: dict[str, Rule] = {
    "MeZO": bz.MeZO(),
    "n-SPSA 4": bz.SPSA(4),
    "one-sided 5": bz.OneSided(5),
    "FZOO 8": bz.FZOO(8),
}


def rule_of(method: Method) -> Rule:
    return RULES.get(method.name) or bz.SPZO(1, method.late // method.early)


def blocks_of(model: nn.Module, split: float | None) -> bz.Blocks:
    return bz.Blocks(model, [] if split is None else "head" if split == 1.0 else split)


def optimiser(model: nn.Module, loss: Loss, method: Method) -> bz.ZO:
    return bz.ZO(model, loss, rule_of(method), blocks_of(model, method.split), lr=LR, eps=EPS)
