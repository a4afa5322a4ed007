"""The paper's shapes: formulas against the models, a resumed command, bytes of real messages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import paper
from benchmarks.harness import read
from benchmarks.shapes import formulas
from benchmarks.shapes.formulas import METHODS, Method
from benchmarks.shapes.methods import optimiser, rule_of
from benchmarks.shapes.models import PAPER, SHAPES, batch, build, language_loss, word_loss
from benchmarks.shapes.wire import round_bytes
from blockzo.federated.protocol.messages import OVERHEAD


@pytest.mark.parametrize("name", [*PAPER, "opt-125m", "tiny"])
def test_parameters_by_formula_are_those_of_the_model(name: str) -> None:
    model = build(SHAPES[name], "meta")
    assert sum(p.numel() for p in model.parameters()) == formulas.parameters(SHAPES[name])
    assert {p.dtype for p in model.parameters()} == {SHAPES[name].dtype}


@pytest.mark.parametrize("case", ["MeZO", "FZOO 8", "SPZO 1 x 4 cut 0.25", "SPZO 1 x 8 cut head"])
def test_a_step_counts_what_the_formula_says(case: str) -> None:
    shape, method = SHAPES["tiny"], METHODS[case]
    found = optimiser(build(shape), word_loss, method).step(batch(shape, 2, 32)).flops
    # rotary tables are products too, which the formula leaves out
    assert found == pytest.approx(formulas.step_flops(shape, method, 2, 32), rel=0.03)


def test_the_methods_run_their_blocks_as_often_as_the_formula_says() -> None:
    for method in METHODS.values():
        blocks = 1 if method.split is None else 2
        runs = rule_of(method).tree(blocks).runs
        assert (runs[0], runs[-1]) == (method.early, method.late), method.case


def test_the_saving_is_that_against_as_many_late_directions() -> None:
    shape, method = SHAPES["opt-1.3b"], METHODS["SPZO 1 x 4 cut 0.5"]
    whole = formulas.step_flops(shape, Method("n-SPSA 4", 8, 8), 2, 32)
    assert formulas.saving(shape, method, 2, 32) == pytest.approx(whole / formulas.step_flops(shape, method, 2, 32))


def test_a_reply_has_four_bytes_a_scalar_beside_its_head() -> None:
    one, five = round_bytes(METHODS["MeZO"])[0], round_bytes(METHODS["one-sided 5"])[0]
    assert five - one == 4 * 4 and one == OVERHEAD + 13 + 4


def test_losses_are_those_of_two_words_and_of_all_positions() -> None:
    shape = SHAPES["tiny"]
    model, data = build(shape), batch(shape, 2, 8)
    with torch.no_grad():
        logits = model(input_ids=data["input_ids"]).logits[:, -1, [100, 200]].float()
        wanted = torch.nn.functional.cross_entropy(logits, data["input_ids"][:, 0] % 2)
        torch.testing.assert_close(word_loss(model, data), wanted)
        assert float(language_loss(model, data)) > 0


def test_a_part_that_is_there_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/paper.py"])
    peaks = {"inference": 100, "MeZO": 102, "SGD": 150, "AdamW": 180}
    asked = []

    def peak(model: str, what: str, *given: object) -> dict[str, int]:
        asked.append(what)
        return {"peak": peaks[what], "flops": 1}

    monkeypatch.setattr(paper, "measured", peak)
    path = tmp_path / "r.csv"
    given = [
        "--models",
        "tiny",
        "--methods",
        "MeZO",
        "--only",
        "flops",
        "memory",
        "training",
        "bytes",
        "--csv",
        str(path),
    ]
    paper.main(given)
    rows = {(row["case"].split(", ")[1], row["metric"]): row["p50"] for row in read(path)}
    assert rows["MeZO", "peak RSS over inference"] == "1.02" and rows["AdamW", "peak RSS over inference"] == "1.8"
    assert float(rows["MeZO", "counter off the formula"]) < 0.03
    capsys.readouterr()
    del asked[:]
    paper.main(given)
    assert not asked and not capsys.readouterr().out
    paper.main([*given, "--again"])
    assert asked


def test_one_forward_by_formula() -> None:
    """Of one layer by hand: width 64, 128 inside, 4 heads of which 2 for keys, 2 x 32 tokens."""
    matrices = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    attention = 2 * 2 * 4 * 32 * 32 * 16 * 2
    assert formulas.layer_flops(SHAPES["tiny"], 2, 32) == 2 * 64 * matrices + attention
