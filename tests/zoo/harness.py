"""One step of blockzo against copies of the model whose noise is materialised: right, refused in words, or wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.methods.tree import BlockMove
from blockzo.ops.params import named_tensors
from blockzo.optim.step import step_seed

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Verdict:
    """`kind` is "right", "refused" (a ValueError of blockzo, its sentence in `text`), "wrong" (`text` says how), or "blunt": the
    losses are too much alike to tell."""

    kind: str
    text: str = ""
    warned: tuple[str, ...] = ()


@dataclass
class Reference:
    """Losses of deep copies with materialised noise; equal moves of several methods are evaluated once.

    Args:
        layout: canonical name of a trainable parameter -> block.
        eps: one a block.
    """

    model: nn.Module
    layout: dict[str, int]
    noise: bz.Noise
    eps: Sequence[float]
    loss: Loss
    batch: Any
    _known: dict[tuple[BlockMove, ...], float] = field(default_factory=dict)

    def __call__(self, moves: Sequence[BlockMove | None]) -> float:
        key = tuple(move for move in moves if move is not None)
        if key not in self._known:
            with torch.no_grad():
                self._known[key] = float(self.loss(self.moved(key), self.batch))
        return self._known[key]

    def moved(self, moves: Sequence[BlockMove]) -> nn.Module:
        other = copy.deepcopy(self.model)
        by_block = {move.block: move for move in moves}
        # a copy may have lost `requires_grad`, as of scripted modules
        for name, parameter in named_tensors(other, trainable_only=False).items():
            move = by_block.get(self.layout.get(name, -1))
            if move is not None:
                z = self.noise.sample(name, parameter.shape, move.direction)
                parameter.data.copy_(
                    (parameter.data.float() + move.sign * self.eps[move.block] * z).to(parameter.dtype)
                )
        return other


def updated(model: nn.Module, record: bz.Record, layout: dict[str, int]) -> nn.Module:
    """A copy with `update_` for every block of the record."""
    other = copy.deepcopy(model)
    for number, block in enumerate(record.blocks):
        part = {name: tensor for name, tensor in named_tensors(other, False).items() if layout.get(name) == number}
        if block.directions:
            noise = bz.Noise(record.seed, record.distribution)
            bz.update_(part, noise, list(block.coefficients), list(block.directions), decay=block.decay)
    return other


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, frozen or not, under every name it has."""
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    } | {name: tensor.detach().clone() for name, tensor in model.named_buffers()}


def step(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    method: Any,
    blocks: bz.Blocks | None = None,
    share: Callable[[Reference], Reference] | None = None,
    eps: float = 1e-2,
    distribution: str = "rademacher",
    tolerance: float = 2e-5,
    part: float = 0.01,
    seed: int = 0,
    **options: Any,
) -> Verdict:
    """One step of `method` on `model`, which is updated.

    Args:
        share: takes the reference made for this step, returns one that may have evaluated its losses already.
        tolerance: of a loss, as a part of the largest loss; or
        part: as a part of the losses' spread, where that is more.
    """
    base = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            zo = bz.ZO(
                model,
                loss,
                method=method,
                blocks=blocks,
                lr=1e-3,
                eps=eps,
                distribution=distribution,
                seed=seed,
                weight_decay=0.1,
                **options,
            )
            result = zo.step(batch)
        except ValueError as error:
            changed = _differ(bits(base), bits(model))
            kind = "wrong" if changed or not _by_blockzo(error) else "refused"
            return Verdict(kind, f"{error}{f' (and {changed} changed)' if changed else ''}")
        except Exception as error:
            return Verdict("wrong", f"{type(error).__name__}: {error}")
    said = tuple(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning))
    layout, count = zo.blocks.layout, len(zo.blocks)
    noise = bz.Noise(step_seed(seed, 0), distribution)
    reference = Reference(base, layout, noise, [block.eps for block in result.record.blocks], loss, batch)
    reference = reference if share is None else share(reference)
    found = list(result.losses)
    expected = [reference(moves) for moves in zo.method_of(result.record).tree(count).leaf_moves()]
    error = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    spread = max(expected) - min(expected)
    if not error <= max(tolerance * max(map(abs, expected)), part * spread):
        return Verdict("wrong", f"losses {found[:4]} for {expected[:4]} (error {error:.2e}, spread {spread:.2e})", said)
    changed = _differ(bits(updated(base, result.record, layout)), bits(model))
    if changed:
        return Verdict("wrong", f"the update differs in {changed}", said)
    if not spread > 4 * max(tolerance * max(map(abs, expected)), error):
        return Verdict("blunt", f"losses spread over {spread:.2e} only", said)
    return Verdict("right", "", said)


def _by_blockzo(error: ValueError) -> bool:
    """A sentence of blockzo, rather than something that torch said of its insides."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and "blockzo" in Path(last.tb_frame.f_code.co_filename).parts and len(str(error)) > 40


def _differ(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])][:4]
