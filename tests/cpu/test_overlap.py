"""Parameters that share memory are refused, whatever their strides; the rest is moved."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import blockzo as bz

PLACES = 400
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def views(draw: st.DrawFn, base: Tensor) -> Tensor:
    """A random strided view of bytes, which may lie anywhere in it and overlap itself."""
    dtype = draw(st.sampled_from(DTYPES))
    flat = base.view(dtype)
    while True:
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        strides = [draw(st.integers(0 if size == 1 else 1, 12)) for size in shape]
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if last < len(flat):
            offset = draw(st.integers(0, min(60, len(flat) - 1 - last)))
            return flat.as_strided(shape, strides, offset)


def addresses(tensor: Tensor) -> list[int]:
    """Of every byte, by walking through all indices."""
    size = tensor.element_size()
    places = [
        tensor.data_ptr() + size * sum(i * s for i, s in zip(index, tensor.stride(), strict=True))
        for index in itertools.product(*map(range, tensor.shape))
    ]
    return [place + byte for place in places for byte in range(size)]


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_any_views_are_moved_exactly_where_no_address_occurs_twice(data: st.DataObject) -> None:
    base = torch.zeros(PLACES, dtype=torch.uint8)
    count = data.draw(st.integers(1, 4))
    found = [data.draw(views(base)) for _ in range(count)]
    seen: dict[tuple[object, ...], Tensor] = {}
    for view in found:  # one view twice is a tied tensor
        seen.setdefault((view.data_ptr(), view.dtype, view.shape, view.stride()), view)
    every = [place for view in seen.values() for place in addresses(view)]
    params = {f"p{k}": view for k, view in enumerate(found)}
    if len(set(every)) == len(every):
        bz.perturb_(params, bz.Noise(1), 0.5)
        assert all(bool((view != 0).all()) for view in found)
    else:
        with pytest.raises(ValueError, match="overlap in memory|share memory"):
            bz.perturb_(params, bz.Noise(1), 0.5)
        assert not bool(base.any())


def test_a_module_with_parameters_inside_one_another() -> None:
    base = torch.zeros(6, 8)
    for one, other in (
        (base, base[2:3, 1:3]),
        (base[:, :5], base[:, 4:]),
        (base[:4], base[3:]),
        (base.t(), base),
        (base[::2], base[1:3]),
    ):
        model = nn.Module()
        model.register_parameter("a", nn.Parameter(one))
        model.register_parameter("b", nn.Parameter(other))
        with pytest.raises(ValueError, match="'a' and 'b' overlap|'b' and 'a' overlap"):
            bz.perturb_(model, bz.Noise(1), 0.5)
        assert not bool(base.any())
    model.b = nn.Parameter(base.as_strided((3, 4), (2, 1)))
    del model.a
    with pytest.raises(ValueError, match="'b' is a view whose elements share memory"):
        bz.update_(model, bz.Noise(1), [0.5])


def test_what_lies_between_is_moved_as_its_own() -> None:
    """Columns of a fused weight, and every second row: none of them is contiguous, and none overlaps."""
    base = torch.zeros(12, 9)
    parts = {"q": base[::2, :3], "k": base[::2, 3:6], "v": base[::2, 6:], "rest": base[1::2]}
    bz.perturb_(parts, bz.Noise(1), 0.5)
    for name, part in parts.items():
        assert torch.equal(part, 0.5 * bz.Noise(1).sample(name, part.shape))
