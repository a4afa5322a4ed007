"""How many evaluations run together: by measured memory, by rows that keep the cores busy, and by what can be batched at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blockzo.perturb import PerturbedForward, batched
from blockzo.perturb.activations import Activations
from blockzo.perturb.causes import Cause, cause_of, found_in, is_left_over
from blockzo.perturb.mode import Outgrown, Parted
from blockzo.perturb.standing import Standing

AUTO_ROWS = 64
"""With more rows (tokens) a forward, one keeps the cores busy, and `max_group="auto"` is 1: measured on OPT-125M, two cores with
AVX-512, groups of four gain 2 times at 16 rows, little at 64, nothing at 128."""
AUTO_GROUP = 16
"""More groups at once bring no more speed."""
SAFETY = 4
"""Peak memory of a forward is taken as so many times the operands and results of its largest operation."""
SHARE, FLOOR = 1 / 30, 48 << 20
"""What the evaluations beside the first may take: a share of the model's own bytes, or so many bytes where that is more (a
process with torch in it takes eight times as many before it has a model)."""

Item = TypeVar("Item")
MaxGroup = int | str
Limits = tuple[int, int]
"""Rows that a linear layer and a lookup may have."""
Run = Callable[[Sequence[Item], Limits | None, bool], tuple[Activations, PerturbedForward]]


@dataclass
class Size:
    """What one evaluation takes, by the rows it was measured with, and how many fit at most; None: not known."""

    rows: Limits | None = None
    nbytes: int = 0
    largest: int | None = None

    def learn(self, mode: PerturbedForward) -> None:
        """From a run that measured."""
        self.nbytes = SAFETY * mode.footprint + sum(small.nbytes for small in mode.small.values())
        self.rows = mode.rows, mode.lookups


Shape = tuple[int, int, int]


def shape_of(mode: PerturbedForward) -> Shape:
    """By what batches of other shapes are told apart: rows, lookups and operands of a run that measured one evaluation."""
    return mode.rows, mode.lookups, mode.operands


@dataclass(frozen=True)
class Alone:
    """Why evaluations of one kind run one after the other; `shape`: of the batch for which they do, None: of any."""

    cause: str
    shape: Shape | None


class Known:
    """What was learned of one model, by the kinds of its evaluations: what they take, and why some cannot be batched."""

    _of: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()

    def __init__(self, owner: Any) -> None:
        self.sizes: dict[Any, Size] = {}
        self.alone: dict[Any, Alone] = {}
        self.checked = False
        self.busy: set[Any] = set()
        """Kinds whose rows kept the cores busy in the last batch."""
        self.clean: set[Any] = set()
        """Kinds of which one that was stopped changes nothing for the next."""
        self.looked: set[Any] = set()
        """Kinds of which a group has run, so that it is known whether something of it is kept."""
        self.beside = max(FLOOR, int(SHARE * _held(getattr(owner, "model", owner))))
        """Bytes that the evaluations beside the first may take."""

    @classmethod
    def of(cls, owner: Any) -> Known:
        """`owner`: the model or its Blocks; one object serves every step."""
        if owner not in cls._of:
            cls._of[owner] = cls(owner)
        return cls._of[owner]


@dataclass(frozen=True)
class _Failure:
    """What a group failed with; `lasting`: as it would with any batch."""

    text: str
    lasting: bool


class Grouping:
    """Decides how many evaluations of one step run together, and runs them.

    The counts depend on the model and the batch, not on what ran before, so that a step can be repeated bit for bit (but where
    memory is short, or a group failed for a reason that passes). Therefore what is run to measure is run again in its group.

    Args:
        owner: the model or its Blocks.
        max_group: a number, or "auto": as many as keep the memory of inference (SHARE), by measured memory, and 1 where a linear
            layer has more than AUTO_ROWS rows.
    """

    def __init__(self, owner: Any, max_group: MaxGroup, device: torch.device) -> None:
        if max_group != "auto" and (isinstance(max_group, (bool, str)) or max_group < 1):
            raise ValueError(f'max_group is {max_group!r}; expected "auto" or a positive integer')
        self.known, self.model = Known.of(owner), getattr(owner, "model", owner)
        self.max_group, self.device = max_group, device
        self._lost = 0
        self.apart = 1
        """So many evaluations are one batch, taken apart."""
        self.busy: set[Any] = set()
        """Kinds of evaluations whose rows keep the cores busy."""

    def each(
        self, items: Sequence[Item], run: Run[Item], kind: Any = None
    ) -> Iterator[tuple[Sequence[Item], Activations, PerturbedForward]]:
        """Runs all items, some at once; in order, but for those that branch differently.

        `run(items, row_limits, measure)` is `run_groups` on their moves.

        A group that fails is tried again as single evaluations. Where those run, the group was the reason: for good where it is
        known to be (`causes.py`), else for batches of this shape.

        Args:
            kind: evaluations of one kind run the same part of the model.
        """
        failure: _Failure | None = None
        size = self.known.sizes.setdefault(kind, Size())
        stopped = False
        done = 0
        while done < len(items):
            waiting = len(items) - done
            noted = self.known.alone.get(kind)
            alone = failure is not None or noted is not None or kind in self.busy
            passing = not failure.lasting if failure else noted is not None and noted.shape is not None
            count = 1 if alone else self._count(size, waiting)
            part = items[done : done + count]
            parted: Parted | None = None
            look = count > 1 and kind not in self.known.looked
            # what is left by an error did not come to what sets the model back
            standing = Standing(self.model) if look and isinstance(self.model, nn.Module) else None
            try:
                if stopped and kind not in self.known.clean:
                    # an evaluation to its end sets back what one that was stopped left beside the model
                    next_one, after = (run(part[:1], None, False)[0] for _ in range(2))
                    if _equal(next_one, after):
                        self.known.clean.add(kind)
                stopped = False
                if count > 1 and isinstance(self.max_group, str) and size.rows is None:
                    known = kind in self.known.busy
                    result, mode = run(part[:1], None, not known)
                    if mode.rows <= AUTO_ROWS:
                        self.known.busy.discard(kind)
                        if not known:
                            size.learn(mode)
                        continue
                    self.busy.add(kind)
                    self.known.busy.add(kind)
                    # not stopped: it is the first of those that run alone
                    part, count = part[:1], 1
                else:
                    result, mode = run(part, self._limits(size, count), look if count > 1 else passing)
                if look and count > 1:
                    self.known.looked.add(kind)
                    place = _held_on(self.model)
                    if not place and mode.outlived is not None and mode.outlived.any():
                        place = "something beside the model"
                    if place:
                        failure = _Failure(f"{place} holds a tensor of a group, which is over then", lasting=True)
                        continue
                if count > 1 and not self.known.checked:
                    difference = _difference(result, run(part[-1:], None, False)[0])
                    if difference:
                        failure = _Failure(difference, lasting=True)
                        continue
                    self.known.checked = True
            except Outgrown as found:
                if standing is not None:
                    standing.put_back()
                if found.linear and found.rows > AUTO_ROWS:
                    self.busy.add(kind)
                size.rows, stopped = None, True
                continue
            except Exception as error:
                if standing is not None:
                    standing.put_back()
                parted = found_in(error, Parted)
                if parted is None:
                    cause = cause_of(error)
                    if count == 1 and is_left_over(error):
                        raise ValueError(
                            "the loss or the model keeps a tensor of an evaluation that ran in a group, and reads it in a later "
                            "one; expected none, or numbers (loss.item()): keep no tensors between calls, or evaluate one after "
                            "the other with max_group=1. The step was not applied"
                        ) from error
                    if count == 1 or cause is Cause.REFUSED:
                        raise
                    if cause is Cause.MEMORY and count > 2:
                        size.largest = max(2, count // 2)
                    else:
                        failure = _Failure(f"{type(error).__name__}: {error}", cause is Cause.BATCHING)
                    stopped = True
                    continue
            if parted is not None:
                # out here, lest an error among these is taken for one that came of parting them
                self._lost += parted.flops
                done += count
                for lot in parted.lots:
                    yield from self.each([part[place] for place in lot], run, kind)
                continue
            if failure is not None:
                self._note(kind, failure, mode)
                failure = None
            elif noted is not None and passing and noted.shape != shape_of(mode) and waiting > 1:
                # another batch: together again, this one too
                del self.known.alone[kind]
                continue
            done += count
            yield part, result, mode

    def take_lost(self) -> int:
        """FLOPs of groups that had to be parted, since it was last asked."""
        lost, self._lost = self._lost, 0
        return lost

    def _count(self, size: Size, waiting: int) -> int:
        if waiting == 1:
            return 1
        limit = AUTO_GROUP if isinstance(self.max_group, str) else self.max_group
        if size.largest is not None:
            limit = min(limit, size.largest)
        if isinstance(self.max_group, str) and size.rows is not None:
            limit = min(limit, self._room(size) // max(1, size.nbytes))
        chunks = -(-waiting // max(1, limit))
        return -(-waiting // chunks)

    def _room(self, size: Size) -> int:
        """Bytes that a group may take: half of what is free, and what a forward of the batch takes with a little beside."""
        return min(free_memory(self.device) // 2, self.apart * size.nbytes + self.known.beside)

    def _limits(self, size: Size, count: int) -> Limits | None:
        """More rows than were measured are well where memory is ample."""
        if count == 1 or not isinstance(self.max_group, str) or size.rows is None:
            return None
        spare = max(1.0, self._room(size) / (max(1, size.nbytes) * count))
        rows, lookups = size.rows
        return min(AUTO_ROWS, int(rows * spare)), int(lookups * spare)

    def _note(self, kind: Any, failure: _Failure, mode: PerturbedForward) -> None:
        self.known.alone[kind] = Alone(failure.text, None if failure.lasting else shape_of(mode))
        short = failure.text.splitlines()[0][:300]
        if failure.lasting:
            text = f"this model cannot be evaluated in groups ({short}); its evaluations run one after the other"
        else:
            text = (
                f"a group of evaluations failed, and alone they run ({short}); they run one after the other for batches of this "
                "shape"
            )
        warnings.warn(f"{text}, with the same results", stacklevel=6)


def _equal(one: Activations, other: Activations) -> bool:
    pairs = zip(one.leaves, other.leaves, strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _difference(group: Activations, alone: Activations) -> str:
    """Of the last of the first group from its own evaluation: a model that keeps state between calls is found here. "": none."""
    last = group.take([-1])
    for found, expected in zip(last.leaves, alone.leaves, strict=True):
        if isinstance(expected, Tensor) and expected.is_floating_point() and (found.numel() or expected.numel()):
            bound = 0.05 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
            difference = (found - expected).abs().max() if expected.numel() else torch.zeros(())
            if found.shape != expected.shape or float(difference) > bound * float(expected.abs().max() + 1e-6):
                return f"in a group a result differs by {float(difference):.3g} from the same evaluation alone"
    return ""


def _held_on(model: Any) -> str:
    """Where a model keeps a tensor of a group that has run: nothing can read it any more, and the model cannot be copied."""
    for place, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if name in ("_parameters", "_modules", "_buffers"):
                continue
            if any(isinstance(leaf, Tensor) and batched.is_wrapped(leaf) for leaf in tree_leaves(value)):
                return f"{place}.{name}".lstrip(".")
    return ""


def _held(model: Any) -> int:
    """Bytes of a model's parameters and buffers."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


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
