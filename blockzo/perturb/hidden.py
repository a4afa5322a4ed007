"""Weights that a loss reads past the mode: by scripted code, in another thread, by C++, with torch functions switched off.

The mode cannot see them, so it cannot move them, and no list of such ways is complete. Therefore it is tried: a sparse part of
every trainable parameter is set to NaN for one evaluation, in which the mode hands out repaired values. A loss that is no longer
finite has read a weight that the mode did not hand out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockzo.ops.params import Target
from blockzo.perturb.kinds import TouchesWeights
from blockzo.perturb.mode import PerturbedForward
from blockzo.perturb.parameters import Index, Parameter

SPARSE = 61
"""Of a large parameter's last dimension one element in so many becomes NaN, and one in every row: where rows are as long, what is
kept of them is 2% of the weights."""
WHOLE = 1 << 10
"""Parameters of at most so many elements become NaN altogether."""
CHUNK_BYTES = 4 << 20
"""Repaired rows of a matrix that are held at once."""


def hidden_reads(targets: Sequence[Target], forward: Callable[[], Any]) -> list[str]:
    """Names of parameters that the loss reads and a perturbed forward would not move; at most four. The first ones where only
    several of them together are not seen.

    Costs one evaluation, and one or two more for each halving where there are such parameters. The weights are written and put
    back, bit for bit. Call it in evaluation mode and without gradients.

    Args:
        targets: the trainable parameters, whole.
        forward: evaluates the loss of the batch; one number that is finite at the weights as they are.

    Raises:
        ValueError: it writes one of them, or asks for the address of its memory.
    """
    if _is_seen(targets, forward):
        return []
    try:
        if not _finite(forward()):
            return []
    except Exception:
        return []  # it fails by itself; whoever evaluates it next is told
    names: list[str] = []
    waiting = [list(targets)]
    while waiting and len(names) < 4:
        part = waiting.pop()
        if len(part) < len(targets) and _is_seen(part, forward):
            continue
        if len(part) == 1:
            names.append(part[0].name)
        else:
            middle = len(part) // 2
            waiting += [part[middle:], part[:middle]]
    # each may be seen where it is tried alone, and not beside another
    return names or [target.name for target in targets[:4]]


def check_reads(targets: Sequence[Target], forward: Callable[[], Any]) -> None:
    """Arguments and cost as of `hidden_reads`.

    Raises:
        ValueError: the loss reads weights that are not moved, or writes weights; no weight has changed.
    """
    names = hidden_reads(targets, forward)
    if names:
        raise ValueError(
            f"the loss reads parameter {', '.join(map(repr, names))} in a way that a perturbed forward cannot see (scripted "
            "code, another thread, an extension, torch functions switched off), so it would be updated but never moved; "
            'use evaluate="in_place", which moves the weights themselves, or freeze it with requires_grad_(False)'
        )


def _is_seen(targets: Sequence[Target], forward: Callable[[], Any]) -> bool:
    with _poisoned(targets) as saved:
        try:
            with _telling(targets), PerturbedForward(Index({0: targets}), {0: _Repaired(saved)}):  # type: ignore[dict-item]
                return _finite(forward())
        except (MemoryError, torch.OutOfMemoryError, TouchesWeights):
            raise
        except Exception:
            return False  # NaN where an index or a probability was expected


def _telling(targets: Sequence[Target]) -> Any:
    """torch's fast attention on CPUs gives zeros where all scores of a row are NaN, as of queries read past the mode."""
    if any(target.tensor.device.type != "cpu" for target in targets):
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def _finite(loss: Any) -> bool:
    return bool(torch.isfinite(torch.as_tensor(loss)).all())


def _step(tensor: Tensor) -> int:
    return 1 if tensor.numel() <= WHOLE or not tensor.dim() else min(SPARSE, tensor.shape[-1])


def _places(tensor: Tensor) -> Tensor:
    return tensor[..., :: _step(tensor)] if tensor.dim() else tensor


def _room(places: Sequence[Tensor]) -> list[Tensor]:
    """A tensor like each, all in one piece of memory: many small ones leave the process larger by as much when they are gone."""
    counts: dict[tuple[torch.device, torch.dtype], int] = {}
    for place in places:
        counts[place.device, place.dtype] = counts.get((place.device, place.dtype), 0) + place.numel()
    left = {kind: torch.empty(count, dtype=kind[1], device=kind[0]) for kind, count in counts.items()}
    room = []
    for place in places:
        kind = place.device, place.dtype
        part, left[kind] = left[kind].split([place.numel(), left[kind].numel() - place.numel()])
        room.append(part.view(place.shape))
    return room


@contextmanager
def _poisoned(targets: Sequence[Target]) -> Iterator[dict[int, _Kept]]:
    """Stream of a parameter -> what its NaN stand for."""
    held: list[tuple[Tensor, Tensor]] = []
    kept: dict[int, _Kept] = {}
    full = [target for target in targets if target.tensor.numel()]
    places = [_places(target.tensor.detach()) for target in full]
    try:
        # weights that were made in inference mode are written in it alone
        with torch.inference_mode():
            for target, place, saved in zip(full, places, _room(places), strict=True):
                saved.copy_(place)
                width = target.tensor.shape[-1] if target.tensor.dim() else 1
                kept[target.stream] = _Kept(saved.reshape(-1), width, _step(target.tensor))
                held.append((place, saved))
                place.fill_(float("nan"))
        yield kept
    finally:
        with torch.inference_mode():
            for place, saved in held:
                place.copy_(saved)


class _Kept:
    """The values of one parameter at every `step`-th place of its rows of `width` elements."""

    def __init__(self, values: Tensor, width: int, step: int) -> None:
        self.values, self.width, self.step = values, width, step
        self.per_row = -(-width // step)

    def repair_(self, flat: Tensor, start: int) -> None:
        """Puts right `flat`, a copy of the elements from `start` on."""
        if not flat.numel():
            return
        first, stop = start // self.width, -(-(start + flat.numel()) // self.width)
        rows = torch.arange(first, stop, device=flat.device).unsqueeze(1) * self.width - start
        at = (rows + torch.arange(0, self.width, self.step, device=flat.device)).reshape(-1)
        inside = (at >= 0) & (at < flat.numel())
        flat[at[inside]] = self.values[first * self.per_row : stop * self.per_row][inside]


class _Repaired:
    """A move by nothing, of weights that hold NaN: each value handed out is repaired."""

    groups, moved = 1, "auto"

    def low_rank(self, parameter: Parameter) -> bool:
        return False

    def __init__(self, kept: dict[int, _Kept]) -> None:
        self.kept = kept

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, parameter: Parameter, start: int) -> Tensor:
        rows, width = weight.shape
        pitch = weight.stride(0)
        chunk = max(1, CHUNK_BYTES // max(1, pitch * weight.element_size()))
        outs = []
        for first in range(0, rows, chunk):
            count = min(chunk, rows - first)
            span = (count - 1) * pitch + width
            flat = weight.as_strided((span,), (1,), weight.storage_offset() + first * pitch).clone()
            self.kept[parameter.stream].repair_(flat, start + first * pitch)
            outs.append(F.linear(x, flat.as_strided((count, width), (pitch, 1))))
        out = torch.cat(outs, dim=-1)
        return out if bias is None else out + bias.reshape(-1)

    def copy(self, out: Tensor, source: Tensor, parameter: Parameter, start: int, group: int) -> None:
        flat = source.reshape(-1).clone()
        if flat.numel():
            self.kept[parameter.stream].repair_(flat, start)
        out.copy_(flat.view(source.shape))

    def rows(self, table: Tensor, rows: Tensor, parameter: Parameter, group: int) -> Tensor:
        kept, width = self.kept[parameter.stream], table.shape[1]
        out = table[rows]
        if width == kept.width:
            out[..., :: kept.step] = kept.values.view(-1, kept.per_row)[rows]
            return out
        whole = table.reshape(-1).clone()
        kept.repair_(whole, 0)
        return whole.view(table.shape)[rows]

    def stack(self, pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(pieces)).view(1, -1)

    def perturb_(self, found: Sequence[Target], group: int) -> None:
        for target in found:
            if target.tensor.numel():
                self.kept[target.stream].repair_(target.tensor.view(-1), 0)
