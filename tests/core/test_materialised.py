"""Weights that are moved for a while hold what `perturb_` gives, and then the bits they had."""

from __future__ import annotations

import copy

import pytest
import torch

import blockzo as bz
from blockzo.ops.params import targets
from blockzo.perturb import Move, materialised
from tests.core import zoo


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stopped", [False, True])
def test_moved_and_put_back(dtype: torch.dtype, stopped: bool) -> None:
    model = zoo.make("gpt2").to(dtype)
    model.transformer.wpe.weight.data = model.transformer.wpe.weight.data.t().contiguous().t()  # not contiguous
    blocks = bz.Blocks(model, [2])
    found = dict(enumerate(blocks.members(targets(model))))
    noise = bz.Noise(3, "gaussian")
    moves = {0: Move(noise, (4, 5), (0.1, 0.0)), 1: Move(noise, (6, 7), (-0.1, 0.2))}
    for group, directions in ((0, (4, 6)), (1, (None, 7))):
        expected = copy.deepcopy(model)
        for block, direction in enumerate(directions):
            part = {n: p for n, p in expected.named_parameters() if blocks.layout[n] == block}
            if direction is not None:
                bz.perturb_(part, noise, moves[block].scales[group], direction)
        before = bz.digest(model)
        try:
            with materialised(found, moves, group) as nbytes:
                assert bz.digest(model) == bz.digest(expected) != before
                whole = [t.tensor.numel() * t.tensor.element_size() for block in found.values() for t in block]
                assert (nbytes == sum(whole)) == (group == 0)
                if stopped:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert bz.digest(model) == before
