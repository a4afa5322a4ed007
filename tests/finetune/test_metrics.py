"""Held-out scores against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockzo.finetune.data.prompts import Encoded
from blockzo.finetune.errors import UserError
from blockzo.finetune.metrics import HeldOutScores, area_under_curve, macro_f1, measure, scores
from blockzo.finetune.models.loading import load
from blockzo.finetune.scoring import Scorer


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_area_counts_pairs_in_order_and_ties_half(pairs: list[tuple[int, bool]]) -> None:
    ones = [value for value, positive in pairs if positive]
    zeros = [value for value, positive in pairs if not positive]
    area = area_under_curve(torch.tensor([float(v) for v, _ in pairs]), torch.tensor([p for _, p in pairs]))
    if not ones or not zeros:
        assert math.isnan(area)
    else:
        expected = sum((a > b) + 0.5 * (a == b) for a in ones for b in zeros) / (len(ones) * len(zeros))
        assert area == pytest.approx(expected)


def test_calibration_moves_the_threshold_to_the_median() -> None:
    # ranks are perfect, but every difference is positive: plain accuracy is chance
    values = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])
    found = scores("causal", values, [0, 0, 1, 1])
    assert (found.accuracy, found.calibrated_accuracy, found.auc, found.rows) == (0.5, 1.0, 1.0, 4)


def test_several_classes_have_no_area() -> None:
    found = scores("causal", torch.eye(3) * 5, [0, 1, 0])
    assert found.as_dict().keys() == {"rows", "loss", "accuracy", "calibrated_accuracy"}
    assert found.accuracy == pytest.approx(2 / 3)


def test_calibration_of_several_classes_takes_away_what_every_row_leans_to() -> None:
    values = torch.eye(3)[[0, 1, 2, 0, 1, 2]] + torch.tensor([0.0, 0.0, 9.0])
    found = scores("causal", values, [0, 1, 2, 0, 1, 2])
    assert (found.accuracy, found.calibrated_accuracy) == (pytest.approx(1 / 3), 1.0)


@torch.no_grad()
def test_rows_come_back_in_their_order_whatever_the_batches(tiny: Callable[[str], Path]) -> None:
    model = load(str(tiny("llama")), "float32").model
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 100, (3 + (7 * i) % 11,), generator=generator).tolist() for i in range(23)]
    data = Encoded(ids, [len(row) - 1 for row in ids], [0] * 23)
    scorer = Scorer("causal", [7, 9], pad=1)
    seen: list[tuple[int, int]] = []
    rows = [3, 1, 4, 15, 9, 2, 6]
    found = measure(model, scorer, data, rows, batch=2, progress=lambda done, total: seen.append((done, total)))
    alone = torch.cat([scorer.logits(model, scorer.batch(data, [row])) for row in rows])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)
    assert seen[0] == (0, 7) and seen[-1] == (7, 7)


@torch.no_grad()
def test_perplexity_is_over_tokens_not_rows(tiny: Callable[[str], Path]) -> None:
    model = load(str(tiny("llama")), "float32").model
    data = Encoded([[5, 6, 7, 8, 9, 10], [9, 8]], [0, 0], [0, 0])
    scorer = Scorer("lm", pad=1)
    found = scores("lm", measure(model, scorer, data, [0, 1]), [0, 0])
    logs = [torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0], -1) for row in data.ids]
    losses = [-float(log[i, row[i + 1]]) for row, log in zip(data.ids, logs, strict=True) for i in range(len(row) - 1)]
    assert found.loss == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5) and found.accuracy is None


def test_overflowing_models_are_named(tiny: Callable[[str], Path]) -> None:
    model = load(str(tiny("llama")), "float32").model
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    with pytest.raises(UserError, match="not finite.*--dtype"):
        measure(model, Scorer("causal", [7, 9]), Encoded([[5, 6]], [1], [0]), [0])


def test_macro_f1_is_the_mean_of_the_classes() -> None:
    values = torch.eye(3)[torch.tensor([0, 0, 1, 2, 1])]
    target = torch.tensor([0, 1, 1, 1, 0])
    # class 0: 1 right of 2 said and 2 there; class 1: 1 of 2 and 3; class 2: 0 of 1 and 0
    assert macro_f1(values, target) == pytest.approx((2 / 4 + 2 / 5 + 0) / 3)
    assert macro_f1(torch.eye(2), torch.tensor([0, 1])) == 1


def test_figures_that_a_task_asks_for_stand_beside_the_others() -> None:
    found = scores("causal", torch.eye(3), [0, 1, 1], ["macro_f1"])
    told = found.as_dict()
    assert told["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3) and "figures" not in told
    assert HeldOutScores.from_dict(told) == found
    assert "macro_f1" not in scores("causal", torch.eye(3), [0, 1, 1]).as_dict()
