"""The table of combinations: a model, a loss, a cut, a method, a distribution, how many run at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import blockzo as bz
from tests.zoo import adapters, harness, losses
from tests.zoo.architectures import ARCHITECTURES, batch, make

ONE = (bz.MeZO(), bz.SPSA(2), bz.OneSided(2), bz.FZOO(2))
TWO = (
    bz.SPZO(1, 2),
    bz.SPZO(1, 2, "decoupled"),
    bz.SPZO(1, 2, "crossed"),
    bz.SPZO(1, 2, one_sided=True),
    bz.Tree((1, 2)),
    bz.SPSA(2),
    bz.OneSided(2),
)
THREE = (bz.Tree((1, 1, 2)), bz.Decoupled((1, 1, 2)), bz.Tree((1, 2, 1), one_sided=True), bz.MeZO())
AUTO = "auto"
"""As a cut: the blocks that the planner makes for itself, and its method."""


@dataclass(frozen=True)
class Case:
    """A model and a loss, to be tried at every cut."""

    name: str
    loss: harness.Loss
    base: str
    """The architecture, which says the batch and the cuts."""
    adapter: str | None = None
    dtype: torch.dtype = torch.float32

    def model(self) -> nn.Module:
        found = make(self.base) if self.adapter is None else adapters.make(self.adapter, self.base)
        return found.to(self.dtype)

    def batch(self) -> dict[str, Any]:
        return {
            name: value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in batch(self.base).items()
        }

    @property
    def cuts(self) -> tuple[Any, ...]:
        found = ARCHITECTURES[self.base]
        return (*(found.cuts or ([], [found.count // 2], ["head"], [1, found.count - 1])), AUTO)

    def blocks(self, model: nn.Module, cut: Any) -> bz.Blocks | None:
        """None: those that the method makes."""
        return None if cut == AUTO else bz.Blocks(model, cut, layers=ARCHITECTURES[self.base].layers)


def _adapted(kind: str, base: str) -> Case:
    return Case(f"{base}+{kind}", losses.plain, base, adapter=kind)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *(Case(name, losses.plain, name) for name in ARCHITECTURES),
        *(Case(f"{name}-{loss}", function, name) for loss, (function, on) in losses.LOSSES.items() for name in on),
        *(_adapted(kind, base) for base in adapters.BASES for kind in adapters.KINDS),
        *(
            Case(f"{name}-bfloat16", losses.widened, name, dtype=torch.bfloat16)
            for name in ("llama", "gpt2", "bert", "t5", "mixtral", "vit")
        ),
    )
    if case.name != "bert_classifier+prefix"  # PEFT has none for it
}

REFUSED: dict[str, str] = {}
"""Cases that are refused, a word of the sentence for each; a refusal anywhere else fails."""


@dataclass(frozen=True)
class Combination:
    case: Case
    cut: Any
    method: Any
    distribution: str
    max_group: Any

    def __str__(self) -> str:
        name = self.method if isinstance(self.method, str) else repr(self.method)
        return f"{self.case.name}, cut {self.cut}, {name}, {self.distribution}, max_group {self.max_group}"


def combinations(case: Case, only: int | None = None) -> Iterator[Combination]:
    """All of a case; or one of its cuts with one method, in turn by the number given."""
    count = 0 if only is None else only
    cuts = case.cuts if only is None else [case.cuts[only % len(case.cuts)]]
    for cut in cuts:
        methods: tuple[Any, ...] = ("auto",)
        if cut != AUTO:
            size = 2 if isinstance(cut, str) else len(cut) + 1
            methods = {1: ONE, 2: TWO, 3: THREE}[size]
        for method in methods if only is None else [methods[only // len(case.cuts) % len(methods)]]:
            count += 1
            yield Combination(case, cut, method, ("rademacher", "gaussian")[count % 2], ("auto", 1)[count // 2 % 2])


class Trial:
    """Runs combinations of one case; those of one cut and distribution share their references."""

    def __init__(self, case: Case) -> None:
        self.case, self.base, self.batch = case, case.model(), case.batch()
        self._references: dict[Any, harness.Reference] = {}

    def __call__(self, found: Combination) -> harness.Verdict:
        low = self.case.dtype != torch.float32
        eps, options = (0.1, {"tolerance": 0.002, "part": 0.25}) if low else (0.03, {})
        verdict = harness.Verdict("blunt")
        # now and then two losses are alike by chance
        for seed in range(12 if low else 3):
            model = copy.deepcopy(self.base)
            try:
                blocks = self.case.blocks(model, found.cut)
            except ValueError as error:
                return harness.Verdict("refused", str(error))
            share = partial(self._share, (str(found.cut), found.distribution, seed))
            verdict = harness.step(
                model,
                self.case.loss,
                self.batch,
                found.method,
                blocks,
                share,
                eps=eps,
                distribution=found.distribution,
                seed=seed,
                max_group=found.max_group,
                **options,
            )
            if verdict.kind != "blunt":
                break
        return verdict

    def _share(self, key: Any, made: harness.Reference) -> harness.Reference:
        """The one that has already evaluated what the new one would, if any."""
        known = self._references.setdefault((*key, tuple(made.eps)), made)
        return known if known.layout == made.layout else made
