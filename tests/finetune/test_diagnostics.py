"""The figures mean what they say, and the advice comes exactly when it should."""

from __future__ import annotations

import math

import pytest
import torch

from blockzo import BlockUpdate, Noise, Record, update_
from blockzo.finetune import diagnostics


def record(losses: tuple[float, ...], *blocks: tuple[float, ...]) -> Record:
    updates = tuple(BlockUpdate(tuple(range(len(c))), c, lr=1e-3, eps=1e-3) for c in blocks)
    return Record(0, 5, "rademacher", updates, losses)


def test_figures_of_a_pair() -> None:
    found = diagnostics.figures(record((1.5, 0.5), (0.25,)), torch.float32)
    assert found["loss"] == 1.0 and found["difference"] == pytest.approx(1.0)
    assert found["snr"] == pytest.approx(2**23) and found["spread"] == [None] and found["lr"] == [1e-3]
    half = diagnostics.figures(record((1.5, 0.5), (0.25,)), torch.bfloat16)
    assert half["snr"] == pytest.approx(2**7)


def test_spread_tells_an_offset_from_signs_that_balance() -> None:
    balanced, offset = diagnostics.figures(record((1.0, 2.0), (1.0, -1.0), (1.0, 1.01)), torch.float32)["spread"]
    assert balanced == pytest.approx(math.sqrt(2)) and offset < 0.01


def test_equal_losses_have_no_signal() -> None:
    found = diagnostics.figures(record((0.7, 0.7), (0.0,)), torch.float32)
    assert found["snr"] == 0.0
    assert "mostly noise" in str(diagnostics.snr_advice(found["snr"], torch.float32))
    assert diagnostics.snr_advice(1e4, torch.float32) is None


def test_unmoved_weights_are_counted() -> None:
    weights = {"a": torch.ones(1000, 30, dtype=torch.bfloat16), "b": torch.full((10000,), 2**-9, dtype=torch.bfloat16)}
    sample = diagnostics.WeightSample(weights, seed=3, size=4000)
    before = sample.take()
    assert len(before) == pytest.approx(4000, abs=2)
    # a sixteenth of the spacing at 1, far above the spacing at 2^-9
    update_(weights, Noise(1), [2.0**-11])
    share = diagnostics.unmoved(before, sample.take())
    assert share == pytest.approx(0.75, abs=0.001)
    assert "--stochastic-rounding" in str(diagnostics.update_advice(share, torch.bfloat16, False))
    assert diagnostics.update_advice(0.1, torch.bfloat16, False) is None


def test_the_sample_is_fixed_and_reads_the_present() -> None:
    weights = {"a": torch.arange(100000.0)}
    one, two = (diagnostics.WeightSample(weights, seed=3) for _ in range(2))
    assert torch.equal(one.take(), two.take()) and len(one.take().unique()) > 20000
    assert not torch.equal(one.take(), diagnostics.WeightSample(weights, seed=4).take())
    weights["a"] += 1
    assert torch.equal(one.take(), two.take()) and float(one.take().min()) >= 1
    strided = {"a": torch.arange(12.0).view(3, 4).t()}
    assert set(diagnostics.WeightSample(strided, seed=0).take().tolist()) <= set(range(12))


def test_eps_below_half_the_spacing_is_announced_with_a_remedy() -> None:
    weights = torch.full((100,), 0.75)
    # bfloat16 numbers in [0.5, 1) lie 2^-8 apart
    advice = diagnostics.eps_advice(weights, [1e-3], torch.bfloat16)
    assert advice is not None and "eps 0.001" in advice and "100%" in advice and "0.008 or more" in advice
    assert diagnostics.eps_advice(weights, [2.1e-3], torch.bfloat16) is None
    assert diagnostics.eps_advice(weights, [1e-3], torch.float32) is None
    assert diagnostics.eps_advice(weights, [1e-3, 1e-9], torch.float32) is not None
    assert diagnostics.eps_advice(torch.zeros(10), [1e-3], torch.float16) is None
