"""A step of numbers in memory, which are written again between two launches: what a captured graph does."""

from __future__ import annotations

from types import ModuleType

import torch

from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.packed import PackedStep, packed
from blockzo.ops.params import Target
from blockzo.ops.steps import Step, make_step
from tests.cpu.cases import FACTOR, SEED, same_bits, weights

OTHER = 0x8000000180000001


def rewrite(step: PackedStep, numbers: Step) -> None:
    fresh = packed(numbers, torch.device("cpu"))
    step.line.copy_(fresh.line)
    step.terms.copy_(fresh.terms)


def check_rewritten(backend: ModuleType, distribution: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    terms = ([0, 2**32 - 2, 9], [0.3, -1e-3, 0.7]), ([7, 1, 2**31], [-0.0, 0.5, 1e-40])
    for kind in ("perturb_", "shift_", "replay_"):
        count = 1 if kind == "perturb_" else 3
        updates = kind == "replay_"
        first, second = (
            make_step(Noise(seed, distribution), d[:count], c[:count], factor if updates else 1.0, updates)
            for seed, (d, c), factor in zip((SEED, OTHER), terms, (FACTOR, 1.0), strict=True)
        )
        table = packed(first, torch.device("cpu"))
        for step in (first, second):
            rewrite(table, step)
            given = [weights(size, dtype, seed=size) for size in sizes]
            results = []
            for module, numbers in ((backend, table), (reference, step)):
                found = [w.clone() for w in given]
                arguments = [numbers] if updates else numbers
                getattr(module, kind)([Target(str(k), k + 5, w) for k, w in enumerate(found)], arguments)
                results.append(found)
            assert all(same_bits(mine, want) for mine, want in zip(*results, strict=True)), kind
