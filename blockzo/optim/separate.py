"""Do the examples of a batch see each other in the loss? Each along directions of its own would mean nothing then.

It is tried, never assumed: the loss of a batch must be the mean of its examples' own losses, and move as they do when all weights
move along one direction. Once is not enough. A batch of one row couples nothing, rows of equal lengths hide by what a loss is
divided, a head that begins at zero hides all that is before it; so it is tried again as batches change and as training goes on.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from blockzo.perturb.blocks import Blocks
from blockzo.perturb.losses import as_tensor
from blockzo.perturb.rows import split_of

ROUNDING, ROUNDING_ELSEWHERE, ROUNDING_16 = 2e-5, 1e-4, 2e-2
"""Difference of a batch's loss from the mean of its examples' that is let pass, as a part of the mean size of these: float32 on a
CPU (SmolLM2-135M: up to 2e-6) and on other devices, and where 16-bit numbers are at work."""
SMALLEST = 1e-2
"""Losses below it, of examples that are all but fitted, have the rounding of this one."""
OF_SPREAD = 0.02
"""Or this share of what their losses move by."""
AGAIN = 256
HALVES = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Taken:
    """A micro-batch by its examples.

    Attributes:
        rows: of the batch. kept: those that have a term in the loss. weights: share of each of these in the loss of all.
    """

    batch: Any
    rows: int
    kept: list[int]
    weights: list[float]

    @property
    def form(self) -> tuple[object, ...]:
        """By what batches are told apart that may be right or wrong to take apart for different reasons."""
        return split_of(self.batch, self.rows), len(set(self.weights)) > 1

    def mean(self, loss: Any) -> Any:
        """The batch's loss, from one or from one an example."""
        value = as_tensor(loss)
        if isinstance(value, Tensor) and value.numel() == self.rows > 1:
            own = value.reshape(-1)[self.kept]
            return (own * torch.tensor(self.weights, dtype=own.dtype, device=own.device)).sum() / math.fsum(
                self.weights
            )
        return loss


@dataclass(frozen=True)
class Pair:
    """A loss at the weights as they are, and with all of them moved."""

    unmoved: float
    moved: float


class Separate:
    """When batches are looked at, and what may be found."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._passed: set[tuple[object, ...]] = set()
        self._runs = 0
        self._warned = False

    @classmethod
    def of(cls, blocks: Blocks, loss_fn: Callable[..., Any]) -> Separate:
        """One for all that evaluate this loss on these blocks, such as the virtual clients of a simulation."""
        return _known.setdefault(blocks, {}).setdefault(loss_fn, cls(blocks.model))

    def due(self, found: Sequence[Taken]) -> list[Taken]:
        """Those to be looked at: of a form that was not yet, and all of them at runs 0, 1, 2, 4, ... 256 and every 256th."""
        for taken in found:
            self._look_at_one_row(taken)
        several = [taken for taken in found if taken.rows > 1 and taken.kept]
        again = self._runs % AGAIN == 0 or self._runs & (self._runs - 1) == 0
        return [taken for taken in several if again or taken.form not in self._passed]

    def passed(self, found: Sequence[Taken], looked_at: Sequence[Taken]) -> None:
        """Another run; one without a batch of several rows tells nothing."""
        self._passed |= {taken.form for taken in looked_at}
        self._runs += any(taken.rows > 1 and taken.kept for taken in found)

    def compare(self, taken: Taken, whole: Pair, own: Sequence[Pair], halves: bool) -> None:
        """Are these the losses of examples that do not see each other?

        Args:
            own: of each example that is kept.
            halves: whether 16-bit numbers were at work.

        Raises:
            ValueError: they are not.
        """
        total = math.fsum(taken.weights)
        shares = [weight / total for weight in taken.weights]

        def mean(values: Sequence[float]) -> float:
            return math.fsum(share * value for share, value in zip(shares, values, strict=True))

        apart = Pair(mean([pair.unmoved for pair in own]), mean([pair.moved for pair in own]))
        size = max(mean([abs(pair.unmoved) for pair in own]), abs(whole.unmoved), SMALLEST)
        rounding = size * self._rounding(halves)
        spread = mean([abs(pair.moved - pair.unmoved) for pair in own])
        expected = (
            "with per_example=True examples must not see each other in the loss (contrastive losses, batch statistics, class "
            "weights, balanced experts), and rows_of must say what a batch's loss is a mean over. The step was not applied: use "
            "per_example=False"
        )
        if not abs(apart.unmoved - whole.unmoved) <= rounding:
            raise ValueError(
                f"the loss of the batch is {whole.unmoved:.7g}, the mean of its examples' losses {apart.unmoved:.7g}; {expected}"
            )
        by, own_by = whole.moved - whole.unmoved, apart.moved - apart.unmoved
        if not abs(by - own_by) <= rounding + OF_SPREAD * spread:
            raise ValueError(
                f"where all weights are moved along one direction the loss of the batch changes by {by:.4g}, the mean of its "
                f"examples' losses by {own_by:.4g}; {expected}"
            )

    def _look_at_one_row(self, taken: Taken) -> None:
        """Warns where a batch counts as one example, and all else in it says that there are more."""
        if taken.rows > 1 or self._warned:
            return
        batch = dict(taken.batch) if isinstance(taken.batch, Mapping) else taken.batch
        first = Counter(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim())
        rows, tensors = first.most_common(1)[0]
        if rows > 1 and tensors > max(1, first[1]):
            warnings.warn(
                f"the first tensor of the batch has one row, so all of it counts as one example, with one direction; "
                f"{tensors} others have {rows} rows: put a tensor with a row an example first",
                stacklevel=7,
            )
            self._warned = True

    def _rounding(self, halves: bool) -> float:
        tensors = [*self.model.parameters()]
        if halves or any(tensor.dtype in HALVES for tensor in tensors):
            return ROUNDING_16
        return ROUNDING if all(tensor.device.type == "cpu" for tensor in tensors) else ROUNDING_ELSEWHERE


_known: WeakKeyDictionary[Blocks, dict[Callable[..., Any], Separate]] = WeakKeyDictionary()


class Halves(TorchFunctionMode):
    """Notes whether a function gave 16-bit numbers, as under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.seen:
            self.seen = any(isinstance(leaf, Tensor) and leaf.dtype in HALVES for leaf in tree_leaves(result))
        return result
