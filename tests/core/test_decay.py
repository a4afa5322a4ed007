"""Weight decay that spares weights by name: in records, in replay, and with a planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import blockzo as bz
from blockzo.ops.params import named_tensors
from tests.core import zoo

SPARED = ("norm", "bias")


def spared(name: str) -> bool:
    return any(part in name for part in SPARED)


@pytest.mark.parametrize(
    ("method", "cut"), [(bz.MeZO(), []), (bz.SPZO(1, 2), [2]), ("auto", [1, 2])], ids=["mezo", "spzo", "auto"]
)
def test_spared_weights_move_and_do_not_decay(method: Any, cut: list[int], tmp_path: Path) -> None:
    model, base, plain = (zoo.make("llama") for _ in range(3))
    blocks = bz.Blocks(model, cut)
    rate = 1.0 if method == "auto" else 1e-2
    zo = bz.ZO(model, None, method, blocks, lr=rate, weight_decay=0.5, no_decay=spared)
    assert set(zo.layout.values()) > set(blocks.layout.values())
    same = bz.ZO(plain, None, method, bz.Blocks(plain, cut), lr=rate, weight_decay=0.0)
    assert same.layout == same.blocks.layout
    with bz.Journal.create(tmp_path / "j", bz.digest(base), zo.layout) as journal:
        zo.attach(journal)
        for step in range(3):
            zo.step(zoo.batch(seed=step))
            if step == 0 and method != "auto":
                # without decay: the same where weights are spared, another number elsewhere
                same.step(zoo.batch(seed=step))
                for name, tensor in named_tensors(model).items():
                    assert torch.equal(tensor, named_tensors(plain)[name]) == spared(name), name
        bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == bz.digest(model)
    with pytest.raises(bz.JournalError, match="layout"), bz.Journal.resume(tmp_path / "j") as journal:
        bz.ZO(base, None, method, bz.Blocks(base, cut)).attach(journal)


def test_names_and_settings_that_do_not_go() -> None:
    model = zoo.make("llama")
    with pytest.raises(ValueError, match="no_decay holds 'nothing'"):
        bz.ZO(model, weight_decay=0.1, no_decay=["nothing"])
    with pytest.raises(ValueError, match="no_decay"):
        bz.ZO(model, weight_decay=0.1, no_decay=spared, evaluate="in_place")
    zo = bz.ZO(model, weight_decay=0.1, no_decay=[next(iter(bz.Blocks(model, []).layout))], max_group=1)
    with pytest.raises(ValueError, match="no_decay"):
        bz.GraphedStep(zo)
    # nothing decays, so nothing is spared
    assert bz.ZO(model, no_decay=spared).decay.blocks == 1
