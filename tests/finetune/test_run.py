"""Whole runs in this process: what they write, that they learn, and that replay gives the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blockzo import Journal, JournalError, digest, replay_
from blockzo.federated.client.finetuning import run_settings
from blockzo.finetune import Settings, UserError, dry_run, evaluate, finetune, loop, replay
from blockzo.finetune.models.loading import load
from blockzo.finetune.progress import Reporter
from blockzo.optim import executor
from blockzo.perturb import Move
from blockzo.simulate import simulate
from blockzo.simulate.settings import Federation

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


class Said(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, line: dict[str, Any]) -> None:
        self.steps.append(line)


def settings(model: Path, rows: Rows, **options: Any) -> Settings:
    own = {
        "task": "custom",
        "template": "{text} it was {label}.",
        "labels": "0=bad,1=good",
        "train": str(rows(60)),
        "validation": str(rows(20, "held.tsv")),
        "steps": 4,
        "batch": 6,
        "eval_every": 2,
        "lr": "1e-3",
    }
    return Settings(str(model), **{**own, **options})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", [{"method": "one-sided", "directions": 2}, {"inner": 2, "split": "0.5"}])
def test_a_direction_an_example(tiny: Tiny, rows: Rows, tmp_path: Path, method: dict[str, Any]) -> None:
    model, out = tiny("llama"), tmp_path / "out"
    finetune(settings(model, rows, per_example=True, **method), out)
    records = Journal.open(out / "journal.bz").records()
    # a batch of six rows: as many numbers of directions as rows, times those of the method
    assert all(len(update.directions) % 6 == 0 for record in records for update in record.blocks)
    replay(str(model), out / "journal.bz", tmp_path / "again")
    first, again = (load_file(folder / "model.safetensors") for folder in (out / "model", tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("method", [{"method": "auto", "lr": "1"}, {"inner": 2, "split": "0.5", "per_example": True}])
def test_noise_of_a_low_rank(tiny: Tiny, rows: Rows, tmp_path: Path, method: dict[str, Any]) -> None:
    model, out = tiny("llama"), tmp_path / "out"
    told = settings(model, rows, rank=2, **method)
    result = finetune(told, out)
    assert {record.rank for record in Journal.open(out / "journal.bz").records()} == {2}
    again = replay(str(model), out / "journal.bz", tmp_path / "again")
    assert again["verified"] and again["digest"] == result["final_digest"] != result["base_digest"]
    with pytest.raises(UserError, match="--rank is 65; expected 64 at most"):
        settings(model, rows, rank=65)
    rounds = simulate(told, Federation(clients=3, sample=2), tmp_path / "rounds")
    journal = Journal.open(tmp_path / "rounds" / "journal.bz")
    assert {record.rank for record in journal.records()} == {2}
    base = load(str(model), "float32").model
    replay_(base, journal.records(), journal.layout)
    assert digest(base) == rounds["final_digest"] != result["base_digest"]
    for given in ({"rank": 2}, {"moved": "rounded"}):
        with pytest.raises(UserError, match="leave out --per-example, --rank and --moved"):
            simulate(settings(model, rows, **given), Federation(engine="fedavg"), tmp_path / "fedavg")


@pytest.mark.parametrize(
    "method", [{"method": "auto", "lr": "1", "steps": 12}, {"inner": 2, "split": "0.5", "lr": None}]
)
def test_one_seed_is_one_run(tiny: Tiny, rows: Rows, tmp_path: Path, method: dict[str, Any]) -> None:
    """Nothing that is measured by a clock decides: neither the planner's costs nor a first rate."""
    told, found = settings(tiny("llama"), rows, seed=5, **method), []
    for name in ("one", "two"):
        finetune(told, tmp_path / name)
        found.append((tmp_path / name / "journal.bz").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("rounds", [False, True])
def test_moves_of_16_bits_are_rounded_as_told(
    rounds: bool, tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Move] = []
    monkeypatch.setattr(executor, "Move", lambda *told: made.append(Move(*told)) or made[-1])
    told = settings(tiny("llama"), rows, moved="rounded", dtype="bfloat16", steps=1, lr=None)
    if rounds:
        simulate(told, Federation(clients=2, sample=2), tmp_path / "out")
        with pytest.raises(UserError, match="leave --in-place out"):
            run_settings(settings(Path(told.model), rows, in_place=True), 1, "0" * 32, 1)
    else:
        finetune(told, tmp_path / "out")
    # the probes of the first rate too
    assert made and {move.moved for move in made} == {"rounded"}


def test_a_real_model_on_real_data(stories: Path, tmp_path: Path) -> None:
    """A few steps of stories15M on SST-2, from the repository's files to a model that loads and a journal that replays."""
    out = tmp_path / "out"
    told = Settings(
        str(stories), labels="0=bad,1=good", steps=3, batch=4, inner=2, eval_every=2, final_rows=48, eval_rows=32
    )
    reporter = Said()
    result = finetune(told, out, reporter)
    assert sorted(p.name for p in out.iterdir()) == [
        "curve.png",
        "journal.bz",
        "metrics.jsonl",
        "model",
        "summary.json",
    ]
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(result))
    assert result["data"]["train"]["rows"] == 6920 and result["before"]["rows"] == 48
    # zero-shot accuracy of this model is 0.63 on all 872 rows
    assert 0.5 < result["before"]["accuracy"] < 0.8 and result["parameters"] == 15_191_712
    found = lines(out)
    assert [line["step"] for line in found] == [0, 1, 2, 3] and [s["step"] for s in reporter.steps] == [1, 2, 3]
    assert ["eval_loss" in line for line in found] == [True, False, True, True]
    assert found[-1]["flops"] == result["flops"] > found[1]["flops"] > 0 and result["forwards"] == 12
    assert (out / "journal.bz").stat().st_size == result["journal_bytes"] < 4000
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    trained = load(str(out / "model"), "float32")
    assert digest(trained.model) == result["final_digest"] != result["base_digest"]
    assert trained.tokenizer("a film")["input_ids"] == load(str(stories), "float32").tokenizer("a film")["input_ids"]
    again = replay(str(stories), out / "journal.bz", tmp_path / "again")
    assert again["verified"] and again["digest"] == result["final_digest"]
    first, second = (load_file(folder / "model.safetensors") for folder in (out / "model", tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("opt", {"method": "mezo", "schedule": "linear", "warmup": 2, "weight_decay": 0.1}),
        ("llama", {"method": "spzo", "lr": "1e-3,1e-4", "eps": "1e-3,1e-2", "variant": "crossed", "split": "1"}),
        ("roberta", {"method": "fzoo", "directions": 3, "distribution": "gaussian"}),
        ("bert", {"method": "tree", "levels": "1,2,2", "schedule": "cosine"}),
        ("encoder", {"method": "spzo", "variant": "decoupled", "lr": "1e-2"}),
        (
            "qwen2",
            {"method": "one-sided", "dtype": "bfloat16", "stochastic_rounding": True, "eps": "1e-2", "blocks": 2},
        ),
        ("llama", {"method": "spzo", "split": "head", "variant": "decoupled", "lr": "1e-4,1e-1"}),
        ("opt", {"method": "spsa", "trainable": "*norm*,*fc?.weight"}),
        ("gpt2", {"method": "spsa", "directions": 2, "dtype": "float16", "train_rows": 30}),
    ],
)
def test_every_kind_of_model_and_method_replays(
    tiny: Tiny, rows: Rows, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    result = finetune(settings(tiny(name), rows, **options), tmp_path / "out")
    assert result["steps"] == 4 and math.isfinite(result["after"]["loss"]) and result["exact"]
    assert result["final_digest"] != result["base_digest"]
    assert (
        replay(str(tiny(name)), tmp_path / "out" / "journal.bz", tmp_path / "again")["digest"] == result["final_digest"]
    )
    # the saved folder is scored alike
    own = {"task": "custom", "template": "{text} it was {label}.", "labels": "0=bad,1=good"}
    held = str(rows(20, "held.tsv"))
    dtype = options.get("dtype", "float32")
    scored = evaluate(Settings(str(tmp_path / "again"), **own, validation=held, dtype=dtype, batch=32))
    assert scored["scores"] == result["after"]


def test_a_run_learns(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, method="spsa", directions=4, steps=40, batch=20, lr="3e-3", eval_every=20)
    result = finetune(told, tmp_path / "out")
    assert result["before"]["accuracy"] <= 0.5 and result["after"]["accuracy"] >= 0.9
    assert result["after"]["loss"] < result["before"]["loss"] - 0.1


def test_language_modelling(tiny: Tiny, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the film was good and the story was bad .\n" * 60)
    told = Settings(
        str(tiny("llama")), task="lm", train=str(text), max_length=32, steps=3, batch=4, method="mezo", lr="1e-3"
    )
    result = finetune(told, tmp_path / "out")
    assert result["before"].keys() == {"rows", "loss", "perplexity"}
    assert result["before"]["perplexity"] == pytest.approx(math.exp(result["before"]["loss"]))
    assert replay(str(tiny("llama")), tmp_path / "out" / "journal.bz", tmp_path / "again")["verified"]


def test_only_the_named_parameters_are_trained(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    result = finetune(settings(tiny("llama"), rows, method="mezo", trainable="*norm*"), tmp_path / "out")
    before, after = (load(str(folder), "float32").model for folder in (tiny("llama"), tmp_path / "out" / "model"))
    moved = {
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == {name for name, _ in before.named_parameters() if "norm" in name}
    assert result["parameters"] == sum(p.numel() for n, p in before.named_parameters() if "norm" in n)
    with pytest.raises(UserError, match="matches no parameter"):
        finetune(settings(tiny("llama"), rows, trainable="*adapter*"), tmp_path / "other")


def test_a_dry_run_writes_nothing_and_counts_what_a_run_counts(
    tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any
) -> None:
    told = settings(tiny("opt"), rows, method="spzo", inner=3, train_rows=6, batch=6)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plan = dry_run(told)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    result = finetune(told, tmp_path / "out")
    assert plan["flops_per_step"] == lines(tmp_path / "out")[1]["flops"] and plan["forwards_per_step"] == 6
    assert [block["runs_per_step"] for block in plan["blocks"]] == [2, 6]
    assert sum(block["parameters"] for block in plan["blocks"]) == plan["parameters"] == result["parameters"]
    assert plan["seconds_per_step"] > 0 and plan["weight_bytes"] == 4 * plan["parameters"]


def test_in_place_runs_say_that_they_are_not_exact(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    result = finetune(settings(tiny("llama"), rows, method="mezo", in_place=True, lr="1e-4"), tmp_path / "out")
    assert result["exact"] is False
    said = Said()
    again = replay(str(tiny("llama")), tmp_path / "out" / "journal.bz", tmp_path / "again", reporter=said)
    assert again["exact"] is False
    assert again["verified"] or any("not exact" in text for text in said.warnings)
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "model", tmp_path / "again"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_advice_on_eps_and_rate(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    drowned = Said()
    told = settings(tiny("llama"), rows, method="mezo", dtype="bfloat16", eps="1e-7", lr="1e-12", steps=1)
    result = finetune(told, tmp_path / "drowned", drowned)
    text = "\n".join(drowned.warnings)
    assert "eps 1e-07 is lost in rounding" in text and "Raise --eps" in text
    assert "weights unmoved" in text and "--stochastic-rounding" in text and "mostly noise" in text
    assert result["warnings"] == drowned.warnings
    assert lines(tmp_path / "drowned")[1]["unmoved"] == 1.0
    sound = Said()
    finetune(settings(tiny("llama"), rows, method="mezo", steps=1, eps="1e-2"), tmp_path / "sound", sound)
    # the fixture's held-out rows are training rows
    assert all("have the text of a training row" in text for text in sound.warnings)


def test_truncated_rows_are_counted(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    said = Said()
    finetune(settings(tiny("opt"), rows, method="mezo", max_length=14, steps=1), tmp_path / "out", said)
    assert any("of 60 training rows had more than 14 tokens" in text for text in said.warnings)
    with pytest.raises(UserError, match=r"rows\.tsv, line \d+: .*--overflow truncate"):
        finetune(settings(tiny("opt"), rows, max_length=14, overflow="error"), tmp_path / "other")
    with pytest.raises(UserError, match="--max-length is 500, the model takes at most 64"):
        finetune(settings(tiny("opt"), rows, max_length=500), tmp_path / "third")


def test_a_loss_that_is_not_finite_leaves_a_valid_journal(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("opt"), rows, method="mezo", lr="1e30", steps=5, eval_every=5)
    with pytest.raises(UserError, match=r"step \d: .*lower --lr"):
        finetune(told, tmp_path / "out")
    journal = Journal.open(tmp_path / "out" / "journal.bz")
    assert not journal.finished and 1 <= len(journal) < 5
    with pytest.raises(JournalError, match="--partial"):
        replay(str(tiny("opt")), journal.path, tmp_path / "again")
    again = replay(str(tiny("opt")), journal.path, tmp_path / "again", partial=True)
    assert again["steps"] == len(journal) and not again["verified"]


def test_replay_refuses_other_models_and_damaged_journals(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    finetune(settings(tiny("llama"), rows, steps=1), tmp_path / "out")
    path = tmp_path / "out" / "journal.bz"
    with pytest.raises(JournalError, match="is not the model this journal begins at"):
        replay(str(tiny("qwen2")), path, tmp_path / "again")
    with pytest.raises(UserError, match="exists: choose another folder"):
        replay(str(tiny("llama")), path, tmp_path / "out")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "bad.bz").write_bytes(data)
    with pytest.raises(JournalError):
        replay(str(tiny("llama")), tmp_path / "bad.bz", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_loss_of_the_step_is_measured_before_its_update(
    tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any
) -> None:
    """Rows, seeds and rates of a run are those that the parts promise: step 1 of the run by hand."""
    told = settings(tiny("llama"), rows, method="mezo", schedule="linear", steps=2)
    kept: list[loop.Training] = []
    original = loop.Training.go
    monkeypatch.setattr(loop.Training, "go", lambda self, *more: (kept.append(self), original(self, *more))[1])
    finetune(told, tmp_path / "out")
    record = Journal.open(tmp_path / "out" / "journal.bz").records()[1]
    assert record.lr == (pytest.approx(5e-4),) and record.eps == (1e-3,)
    run = kept[0]
    base = load(str(tiny("llama")), "float32").model
    from blockzo import Noise, perturb_, replay_

    replay_(base, Journal.open(tmp_path / "out" / "journal.bz").records()[:1], run.blocks.layout)
    batch = run.prepared.scorer.batch(run.prepared.train, run.order.rows(1))
    perturb_(base, Noise(record.seed), 1e-3)
    with torch.no_grad():
        assert float(run.prepared.scorer.loss(base, batch)) == pytest.approx(record.losses[0], abs=1e-5)


def test_only_the_trainable_parameters_move_and_replay_knows(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    model = tiny("llama")
    told = settings(model, rows, trainable="*norm*", split="head", variant="decoupled", lr="1e-2,1e-1")
    result = finetune(told, tmp_path / "out", Said())
    before, after = (load(str(folder), "float32").model.state_dict() for folder in (model, tmp_path / "out" / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "norm" in name}
    assert replay(str(model), tmp_path / "out" / "journal.bz", tmp_path / "again")["digest"] == result["final_digest"]
    with pytest.raises(UserError, match="--trainable 'nrom' matches no parameter"):
        finetune(settings(model, rows, trainable="nrom"), tmp_path / "other", Said())
