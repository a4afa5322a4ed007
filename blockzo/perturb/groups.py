"""Groups: several evaluations of one model, each with weights moved its own way, run as one batch.

The forward runs once under `torch.vmap`; only what depends on a moved weight gets a group dimension, so masks, positions and
control flow on the inputs are the model's own. This is the inner and outer parallelism of P-RGE (arXiv 2409.15520) for any model
and full rank. What cannot be batched (control flow on activations, `.item()`, functions without a batching rule) runs one
evaluation after the other.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from blockzo.noise import Noise
from blockzo.ops.distributed import is_dtensor
from blockzo.ops.packed import upload
from blockzo.ops.params import whole_targets
from blockzo.perturb import Index, Moves, PerturbedForward, batched, make_move
from blockzo.perturb.losses import evaluation_mode
from blockzo.perturb.mode import Outgrown

AUTO_ROWS = 64
"""With more rows (tokens) a forward, one keeps the cores busy, and `max_group="auto"` is 1: measured on OPT-125M, two cores with
AVX-512, groups of four gain 2 times at 16 rows, little at 64, nothing at 128."""
AUTO_GROUP = 16
"""More groups at once bring no more speed."""
SAFETY = 4
"""Peak memory of a forward is taken as so many times the operands and results of its largest operation."""

Item = TypeVar("Item")
MaxGroup = int | str
Limits = tuple[int, int]
"""Rows that a linear layer and a lookup may have."""
Run = Callable[[Sequence[Item], Limits | None, bool], tuple["Activations", PerturbedForward]]


@dataclass(frozen=True)
class Activations:
    """What a run returned: leaves of a pytree; `own[i]` where leaf i has a leading group dimension."""

    leaves: list[Any]
    own: list[bool]
    spec: TreeSpec

    def take(self, groups: Sequence[int]) -> Activations:
        """Those of the groups given, in that order; one that all of them share has no group dimension."""
        if not any(self.own):
            return self
        if len(set(groups)) == 1:
            leaves = [leaf[groups[0]] if own else leaf for leaf, own in zip(self.leaves, self.own, strict=True)]
            return Activations(leaves, [False] * len(leaves), self.spec)
        first = self._owned()[0]
        if list(groups) == list(range(first.shape[0])):
            return self
        index = {device: upload(torch.tensor(groups), device) for device in {leaf.device for leaf in self._owned()}}
        leaves = [
            leaf.index_select(0, index[leaf.device]) if own else leaf
            for leaf, own in zip(self.leaves, self.own, strict=True)
        ]
        return Activations(leaves, self.own, self.spec)

    def _owned(self) -> list[Tensor]:
        return [leaf for leaf, own in zip(self.leaves, self.own, strict=True) if own]

    @property
    def nbytes(self) -> int:
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves if isinstance(leaf, Tensor))

    def tree(self) -> Any:
        return tree_unflatten(self.leaves, self.spec)


def run_groups(
    forward: Callable[[Any, PerturbedForward], Any],
    kept: Activations | None,
    index: Index,
    moves: Mapping[int, Moves],
    groups: int,
    barred: Mapping[int, str] | None = None,
    row_limits: Limits | None = None,
    measure: bool = False,
) -> tuple[Activations, PerturbedForward]:
    """Runs `forward(kept, mode)` for all groups of the moves (block -> move; for each block of the index one).

    Args:
        forward: takes what `kept` holds for one group (None where nothing is kept), and the mode it runs under.

    Returns:
        What it returned, and the mode that counted.
    """
    if groups == 1:
        mode = PerturbedForward(index, moves, barred, 1, None, row_limits, measure)
        with mode:
            result = forward(None if kept is None else kept.tree(), mode)
        leaves, spec = _read(mode, result)
        return Activations(leaves, [False] * len(leaves), spec), mode
    found: list[Any] = []

    def body(group: Tensor) -> Tensor:
        level = batched.level_of(group)
        mode = PerturbedForward(index, moves, barred, groups, level, row_limits)
        before = None
        if kept is not None:
            pairs = zip(kept.leaves, kept.own, strict=True)
            before = tree_unflatten([_for_groups(leaf, own, groups, level) for leaf, own in pairs], kept.spec)
        with mode:
            result = forward(before, mode)
        leaves, spec = _read(mode, result)
        lowered = [batched.lower(leaf, level) if isinstance(leaf, Tensor) else (leaf, False) for leaf in leaves]
        found.extend((Activations([leaf for leaf, _ in lowered], [own for _, own in lowered], spec), mode))
        return group

    with batched.quiet_fallbacks():
        torch.vmap(body)(torch.arange(groups))
    return found[0], found[1]


def split_drift(result: Activations) -> tuple[Activations, Tensor]:
    """What the loss function gave, and how far the inputs of its layers drifted (`passes.Kept`), from the pair of both."""
    value, drift = result.tree()
    leaves, spec = tree_flatten(value)
    return Activations(leaves, result.own[:-1], spec), drift


def _read(mode: PerturbedForward, result: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves of what a forward under the mode gave; a parameter or a view of one leaves the mode with its moved values."""
    leaves, spec = tree_flatten(result)
    return [mode.moved(leaf) for leaf in leaves], spec


def _for_groups(leaf: Any, own: bool, groups: int, level: int) -> Any:
    """What all groups share is given to each as its own too, for layers that work in place."""
    if not own and isinstance(leaf, Tensor) and leaf.is_floating_point():
        leaf, own = leaf.unsqueeze(0).expand(groups, *leaf.shape), True
    return batched.lift(leaf, level) if own else leaf


@dataclass
class Size:
    """What one evaluation takes, by the rows it was measured with (None: not known), and how many fit at most."""

    rows: Limits | None = None
    nbytes: int = 0
    largest: int = AUTO_GROUP

    def learn(self, mode: PerturbedForward) -> None:
        """From a run that measured."""
        self.nbytes = SAFETY * mode.footprint + sum(small.nbytes for small in mode.small.values())
        self.rows = mode.rows, mode.lookups


class Known:
    """What was learned of one model: what evaluations take, by the blocks they run, and whether they can be batched at all."""

    _of: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.sizes: dict[Any, Size] = {}
        self.alone: str | None = None
        self.checked = False

    @classmethod
    def of(cls, owner: Any) -> Known:
        """`owner`: the model or its Blocks; one object serves every step."""
        return cls._of.setdefault(owner, cls())


class Grouping:
    """Decides how many evaluations of one step run together, and runs them.

    The counts depend on the model and the batch, not on what ran before, so that a step can be repeated bit for bit (but where
    memory is short). Therefore what is run to measure is run again in its group.

    Args:
        owner: the model or its Blocks.
        max_group: a number, or "auto": by measured memory, and 1 where a linear layer has more than AUTO_ROWS rows.
    """

    def __init__(self, owner: Any, max_group: MaxGroup, device: torch.device) -> None:
        if max_group != "auto" and (isinstance(max_group, (bool, str)) or max_group < 1):
            raise ValueError(f'max_group is {max_group!r}; expected "auto" or a positive integer')
        self.known = Known.of(owner)
        self.max_group, self.device = max_group, device
        self.busy: set[Any] = set()
        """Kinds of evaluations whose rows keep the cores busy."""

    def each(
        self, items: Sequence[Item], run: Run[Item], kind: Any = None
    ) -> Iterator[tuple[Sequence[Item], Activations, PerturbedForward]]:
        """Runs all items in order, some at once; `run(items, row_limits, measure)` is `run_groups` on their moves.

        Args:
            kind: evaluations of one kind run the same part of the model.
        """
        failure: Exception | None = None
        size = self.known.sizes.setdefault(kind, Size())
        done = 0
        while done < len(items):
            alone = failure is not None or kind in self.busy
            count = 1 if alone else self._count(size, len(items) - done)
            part = items[done : done + count]
            try:
                if count > 1 and isinstance(self.max_group, str) and size.rows is None:
                    size.learn(run(part[:1], (AUTO_ROWS, sys.maxsize), True)[1])
                    continue
                result, mode = run(part, self._limits(size, count), False)
                if count > 1 and not self.known.checked:
                    _check(result, run(part[-1:], None, False)[0])
                    self.known.checked = True
            except Outgrown as found:
                if found.linear and found.rows > AUTO_ROWS:
                    self.busy.add(kind)
                size.rows = None
                continue
            except (torch.OutOfMemoryError, MemoryError):
                if count == 1:
                    raise
                size.largest = count // 2
                continue
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
                if count == 1:
                    raise
                failure = error
                continue
            if failure is not None:
                # alone it runs, so it was the batching that failed
                self._give_up(failure)
                failure = None
            done += count
            yield part, result, mode

    def _count(self, size: Size, waiting: int) -> int:
        if waiting == 1 or self.known.alone is not None:
            return 1
        limit = size.largest if isinstance(self.max_group, str) else self.max_group
        if isinstance(self.max_group, str) and size.rows is not None:
            limit = min(limit, free_memory(self.device) // (2 * max(1, size.nbytes)))
        chunks = -(-waiting // max(1, limit))
        return -(-waiting // chunks)

    def _limits(self, size: Size, count: int) -> Limits | None:
        """More rows than were measured are well where memory is ample."""
        if count == 1 or not isinstance(self.max_group, str) or size.rows is None:
            return None
        spare = max(1.0, free_memory(self.device) / (2 * max(1, size.nbytes) * count))
        rows, lookups = size.rows
        return min(AUTO_ROWS, int(rows * spare)), int(lookups * spare)

    def _give_up(self, failure: Exception) -> None:
        self.known.alone = f"{type(failure).__name__}: {failure}"
        warnings.warn(
            f"this model cannot be evaluated in groups ({self.known.alone.splitlines()[0][:300]}); its evaluations run one after "
            "the other, with the same results",
            stacklevel=6,
        )


class _Differs(RuntimeError):
    pass


def _check(group: Activations, alone: Activations) -> None:
    """The last of the first group against its own evaluation: a model that keeps state between calls is found here."""
    last = group.take([-1])
    for found, expected in zip(last.leaves, alone.leaves, strict=True):
        if isinstance(expected, Tensor) and expected.is_floating_point():
            bound = 0.05 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
            difference = (found - expected).abs().max() if expected.numel() else torch.zeros(())
            if found.shape != expected.shape or float(difference) > bound * float(expected.abs().max() + 1e-6):
                raise _Differs(f"in a group a result differs by {float(difference):.3g} from the same evaluation alone")


def perturbed_losses(
    model: nn.Module,
    noise: Noise,
    directions: Sequence[int],
    scales: Sequence[float],
    forward: Callable[[], Tensor],
    max_group: MaxGroup = "auto",
) -> Tensor:
    """Losses of a model under several moves of its weights, as many at once as memory allows; no weight is written.

    Args:
        model: any module; parameters with `requires_grad` are moved, under their canonical names. Dropout is off.
        directions, scales: G of each; in evaluation g every weight is `w + scales[g] * z[directions[g]]`.
        forward: calls the model and returns a tensor with one element.
        max_group: evaluations that run as one batch at most; "auto": by measured memory, and only where it is faster.

    Returns:
        float32 tensor [G] on the CPU.

    Raises:
        ValueError: lists of different lengths, an unsupported parameter, a loss of more than one element.
    """
    if len(directions) != len(scales) or not len(directions):
        raise ValueError(
            f"directions has {len(directions)} entries, scales {len(scales)}; expected one each, at least one"
        )
    pairs = list(zip(directions, scales, strict=True))
    make_move(noise, directions, scales)
    found = whole_targets(model, "a perturbed forward")
    index = Index({0: found})
    device = found[0].tensor.device if found else torch.device("cpu")

    def run(part: Sequence[Any], limits: Limits | None, measure: bool) -> tuple[Activations, PerturbedForward]:
        move = make_move(noise, *zip(*part, strict=True))
        return run_groups(lambda *_: forward(), None, index, {0: move}, len(part), None, limits, measure)

    with evaluation_mode(model):
        each = Grouping(model, max_group, device).each(pairs, run)
        losses = [group_losses(result, len(part)) for part, result, _ in each]
    return torch.tensor([loss for group in read_together(losses) for loss in group], dtype=torch.float32)


def read_together(found: Sequence[Tensor]) -> list[Any]:
    """As lists, by one copy from the device: it is the only time that a step waits for it."""
    if not found:
        return []
    numbers = torch.cat([tensor.reshape(-1).to(found[0].device) for tensor in found]).cpu()
    parts = numbers.split([tensor.numel() for tensor in found])
    return [part.view(tensor.shape).tolist() for part, tensor in zip(parts, found, strict=True)]


def group_losses(result: Activations, groups: int) -> Tensor:
    """The loss of each group, float32 [groups], where the loss function left it.

    Raises:
        ValueError: it is not one number a group.
    """
    value = result.leaves[0] if len(result.leaves) == 1 else result.tree()
    own = result.own == [True]
    if not isinstance(value, Tensor) or value.numel() != (groups if own else 1):
        shape = tuple(value.shape[1:] if own else value.shape) if isinstance(value, Tensor) else None
        found = f"a {type(value).__name__}" if shape is None else f"shape {shape}"
        raise ValueError(f"loss_fn returned {found}; expected a tensor with one element, the mean loss of the batch")
    if is_dtensor(value):
        # tensor parallelism may leave a loss as one; all ranks are here
        value = value.full_tensor()  # type: ignore[attr-defined]
    # a copy: it is read at the end, and a model may write its next loss to the same place
    return value.detach().reshape(-1).expand(groups).to(torch.float32, copy=True)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken; 0 where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, StopIteration, ValueError):
        pass
    return max(0, min(found, default=0))
