"""Which tensors share memory, within themselves or with one another: exactly, for any strides.

Two tensors of one place in memory would be moved twice, and by two threads at once. Tensors that fill their range, as nearly all
do, are compared by their ends; what lies between one another (columns of a matrix) is marked in a map of the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_MAP = 1 << 31
"""Places of a map: a byte each, for as long as the check lasts."""


@dataclass(frozen=True)
class _Span:
    """A tensor's bytes: from `begin` to before `end`, all of them where it is `full`."""

    begin: int
    end: int
    name: str
    tensor: Tensor
    full: bool

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> _Span:
        item = tensor.element_size()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        begin = tensor.data_ptr()
        return cls(begin, begin + (last + 1) * item, name, tensor, last + 1 == tensor.numel() and _separate(tensor))


def _separate(tensor: Tensor) -> bool:
    """Do its strides alone show that no two elements share memory? Each dimension steps over all that the smaller ones reach."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += (size - 1) * stride
    return True


def check_disjoint(named: Sequence[tuple[str, Tensor]]) -> None:
    """
    Args:
        named: strided tensors of any device, each once.

    Raises:
        ValueError: names a tensor whose elements share memory, or two tensors that overlap.
    """
    devices: dict[torch.device, list[_Span]] = {}
    for name, tensor in named:
        if tensor.numel():
            devices.setdefault(tensor.device, []).append(_Span.of(name, tensor))
    for spans in devices.values():
        spans.sort(key=lambda span: (span.begin, span.end))
        cluster: list[_Span] = []
        end = 0
        for span in spans:
            if cluster and span.begin >= end:
                _check(cluster)
                cluster = []
            cluster.append(span)
            end = max(end, span.end) if len(cluster) > 1 else span.end
        _check(cluster)


def _check(cluster: list[_Span]) -> None:
    """Spans whose ranges follow one another without a gap between them."""
    if len(cluster) == 1 and _separate(cluster[0].tensor):
        return
    for one, other in zip(cluster, cluster[1:], strict=False):
        if one.full and other.full and other.begin < one.end:
            raise _overlap(one, other)
    begin, size = cluster[0].begin, max(span.end for span in cluster) - cluster[0].begin
    unit = math.gcd(*(n for span in cluster for n in (span.begin - begin, span.tensor.element_size())))
    if size // unit > MOST_MAP:
        raise ValueError(
            f"parameter {cluster[0].name!r} and {len(cluster) - 1} others lie between one another in {size} bytes; that they do "
            "not overlap cannot be shown: pass contiguous tensors"
        )
    marks = torch.zeros(size // unit, dtype=torch.uint8)
    for number, span in enumerate(cluster):
        places = _places(marks, span, begin, unit)
        if not _separate(span.tensor):
            own = torch.zeros((span.end - span.begin) // unit, dtype=torch.uint8)
            _places(own, span, span.begin, unit).fill_(1)
            if int(own.sum(dtype=torch.int64)) != places.numel():
                raise ValueError(
                    f"parameter {span.name!r} is a view whose elements share memory (sizes {tuple(span.tensor.shape)}, strides "
                    f"{span.tensor.stride()}); pass the tensor that it views"
                )
        if bool(places.any()):
            raise _overlap(next(s for s in cluster[:number] if _share(s, span, begin, unit, marks.numel())), span)
        places.fill_(1)


def _places(marks: Tensor, span: _Span, begin: int, unit: int) -> Tensor:
    """The view of `marks`, which has a place for every `unit` bytes from `begin` on, that a tensor covers."""
    item = span.tensor.element_size() // unit
    strides = [stride * item for stride in span.tensor.stride()]
    return marks.as_strided([*span.tensor.shape, item], [*strides, 1], (span.begin - begin) // unit)


def _share(one: _Span, other: _Span, begin: int, unit: int, size: int) -> bool:
    marks = torch.zeros(size, dtype=torch.uint8)
    _places(marks, one, begin, unit).fill_(1)
    return bool(_places(marks, other, begin, unit).any())


def _overlap(one: _Span, other: _Span) -> ValueError:
    return ValueError(
        f"parameters {one.name!r} and {other.name!r} overlap in memory; pass the tensor that holds both, once"
    )
