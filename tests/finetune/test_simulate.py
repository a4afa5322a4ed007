"""`blockzo simulate`: real messages, one set of weights; its journal rebuilds the model; a stopped run ends with its bits."""

from __future__ import annotations

import copy
import csv
import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import blockzo as bz
from blockzo.federated.client.finetuning import Batches
from blockzo.federated.client.worker import Weights
from blockzo.federated.protocol import messages as m
from blockzo.federated.server.hooks import Hooks
from blockzo.finetune import Settings, UserError
from blockzo.finetune.models.loading import load
from blockzo.finetune.prepare import prepare
from blockzo.finetune.progress import Reporter
from blockzo.journal.file import Journal
from blockzo.simulate import Federation, resume, simulate
from blockzo.simulate.fedavg import FedAvg
from blockzo.simulate.rounds import Simulation
from blockzo.simulate.settings import FREE_ON_RESUME, resumed
from tests.finetune.process import blockzo, started

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


def settings(model: Path, rows: Rows, **changed: Any) -> Settings:
    values: dict[str, Any] = {
        "model": str(model),
        "task": "custom",
        "template": "{text} it was {label}.",
        "labels": "0=bad,1=good",
        "train": str(rows(60)),
        "validation": str(rows(20, "held.tsv")),
        "method": "spzo",
        "inner": 2,
        "batch": 6,
        "eval_every": 2,
        "lr": "1e-3",
        "weight_decay": 0.1,
        "threads": 1,
        "steps": 6,
        **changed,
    }
    return Settings(**values)


def options(told: Settings) -> list[str]:
    alone = ("steps", "objective")
    values = {k: v for k, v in told.as_dict().items() if v not in (None, False) and k not in alone}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_simulation_leaves_a_journal_that_rebuilds_the_model_and_honest_figures(
    tiny: Tiny, rows: Rows, tmp_path: Path
) -> None:
    told = settings(tiny("llama"), rows)
    result = simulate(told, Federation(clients=5, sample=3, drop=0.3, local_steps=2), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == list(range(7))
    assert [line["step"] for line in found if "eval_loss" in line] == [0, 2, 4, 6]
    with open(tmp_path / "run" / "rounds.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["flops"]) for row in table] == [line["flops"] for line in found]
    journal = Journal.open(tmp_path / "run" / "journal.bz")
    journal.verify()
    assert len(journal) == result["rounds"] == 6
    # three of five are asked in a round
    assert result["up_to_date"] == 5 and result["bytes_down_at_the_end"] > 0
    base = load(str(tiny("llama")), "float32").model
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == journal.final_digest == result["final_digest"]
    trained = load(str(tmp_path / "run" / "model"), "float32").model
    assert bz.digest(trained) == journal.final_digest
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    answers = sum(line["clients"] for line in found)
    assert 6 <= answers <= 18 and result["bytes_up"] / answers >= m.OVERHEAD + 13 + 4 * 6
    assert result["flops"] == found[-1]["flops"] > 0


def test_functions_of_ones_own_after_rounds(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=3)
    ended: list[int] = []

    def width(rounds: int, model: torch.nn.Module) -> dict[str, float]:
        return {"rounds": rounds, "weights": sum(p.numel() for p in model.parameters())}

    hooks = Hooks(width, lambda result, metrics: ended.append(result.number), every=2)
    result = simulate(told, Federation(clients=3), tmp_path / "run", hooks=hooks)
    assert result["rounds"] == 3 and ended == [0, 1, 2]
    found = [line.get("metrics", {}).get("rounds") for line in lines(tmp_path / "run")]
    assert found == [None, None, 2, 3]
    with pytest.raises(UserError, match="leave them out with the engine fedavg"):
        simulate(told, Federation(engine="fedavg"), tmp_path / "no", hooks=hooks)


def test_a_direction_an_example(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    """With clients of fewer rows than a batch, local steps and liars; killed and continued; the journal rebuilds the model."""
    told = settings(tiny("llama"), rows, per_example=True, batch=12, weight_decay=0.0)
    federation = Federation(clients=6, sample=3, alpha=0.3, local_steps=2, own_directions=True, liars=0.2)
    result = simulate(told, federation, tmp_path / "run")
    journal = Journal.open(tmp_path / "run" / "journal.bz")
    directions = [record.blocks[1].directions for record in journal.records()]
    # own numbers: no client's places are another's
    assert all(len(set(found)) == len(found) <= 3 * 2 * 2 * 12 for found in directions)
    assert len({len(found) for found in directions}) > 1
    base = load(str(tiny("llama")), "float32").model
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == result["final_digest"] and not result["refused"]
    simulate(settings(tiny("llama"), rows, per_example=True, steps=2), Federation(secure_sum=True), tmp_path / "sum")
    with pytest.raises(UserError, match="leave out --per-example"):
        simulate(told, Federation(engine="fedavg"), tmp_path / "fedavg")
    with pytest.raises(ValueError, match="one example's share of a slope: expected one of mean"):
        simulate(told, Federation(aggregate="median"), tmp_path / "median")
    assert not (tmp_path / "median").exists()


def test_a_skewed_client_that_knows_nothing_more_has_no_say_in_the_bias(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    prepared = prepare(settings(tiny("bert"), rows), print)
    skewed = [row for row, label in enumerate(prepared.train.labels) if label][:9]
    skewed += [row for row, label in enumerate(prepared.train.labels) if not label][:2]
    batches = [
        Batches(prepared, skewed, settings(tiny("bert"), rows, batch=11), 0, 1, adjusted) for adjusted in (False, True)
    ]
    # shares with one more of each label: 3 and 10 of 13
    pushes = []
    for batch, _ in (one(0, 0) for one in batches):
        logits = torch.zeros(2, requires_grad=True)
        scorer = copy.copy(prepared.scorer)
        scorer.logits = lambda model, batch, given=logits: given.expand(11, 2)  # type: ignore[method-assign]
        scorer.loss(prepared.model, batch).backward()
        assert logits.grad is not None
        pushes.append(logits.grad.tolist())
    assert pushes[0] == pytest.approx([0.5 - 2 / 11, 0.5 - 9 / 11])
    assert pushes[1] == pytest.approx([3 / 13 - 2 / 11, 10 / 13 - 9 / 11])
    # evaluation is of the model as it is
    torch.testing.assert_close(batches[1](0, 0)[0]["log_prior"], torch.tensor([3 / 13, 10 / 13]).log())
    result = simulate(
        settings(tiny("bert"), rows, steps=2), Federation(clients=3, logit_adjustment=True), tmp_path / "run"
    )
    assert result["federation"]["logit_adjustment"]


@pytest.mark.parametrize("partition", ["iid", "label", "column"])
def test_partitions_methods_and_aggregates_run(partition: str, tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("bert"), rows, steps=2, method="one-sided", directions=2, inner=4)
    given: dict[str, Any] = {"partition": partition}
    if partition == "column":
        text = Path(told.train or "").read_text().splitlines()
        named = [text[0] + "\tuser", *(f"{line}\tu{i % 7}" for i, line in enumerate(text[1:]))]
        Path(told.train or "").write_text("\n".join(named) + "\n")
        given |= {"column": "user", "clients": None}
    aggregate = {"iid": "sign", "label": "trimmed-mean", "column": "median"}[partition]
    result = simulate(told, Federation(**given, sample=None, aggregate=aggregate, liars=0.25), tmp_path / "run")
    assert result["clients"] == (7 if partition == "column" else 8)
    assert lines(tmp_path / "run")[-1]["clients"] == result["clients"]


def test_privacy_tells_epsilon_in_every_round_and_no_loss(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=3, weight_decay=0.0)
    given = {"privacy": "central", "clip": 1.0, "noise_multiplier": 2.0, "weighting": "equal"}
    result = simulate(told, Federation(clients=4, sample=4, **given), tmp_path / "run")  # type: ignore[arg-type]
    found = lines(tmp_path / "run")[1:]
    assert [line["loss"] for line in found] == [None] * 3
    spent = [line["epsilon"] for line in found]
    assert 0 < spent[0] < spent[1] < spent[2] == result["epsilon"]
    # in secure sums the clients add it, and it costs the same
    shared = simulate(told, Federation(clients=4, sample=4, secure_sum=True, **given), tmp_path / "sums")  # type: ignore[arg-type]
    assert [line["epsilon"] for line in lines(tmp_path / "sums")[1:]] == spent and shared["epsilon"] == spent[2]
    with pytest.raises(UserError, match="--privacy central"):
        Federation(clients=4, secure_sum=True, **{**given, "privacy": "local"})  # type: ignore[arg-type]


def test_secure_sums_end_as_plain_ones_but_for_rounding(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=3)
    given: dict[str, Any] = {"clients": 5, "sample": 4, "local_steps": 2}
    plain = simulate(told, Federation(**given), tmp_path / "plain")
    secure = simulate(told, Federation(**given, secure_sum=True), tmp_path / "secure")
    again = simulate(told, Federation(**given, secure_sum=True), tmp_path / "again")
    # masks are random and cancel exactly
    assert again["final_digest"] == secure["final_digest"] != plain["final_digest"]
    found, wanted = (
        [
            c
            for record in Journal.open(tmp_path / name / "journal.bz").records()
            for b in record.blocks
            for c in b.coefficients
        ]
        for name in ("secure", "plain")
    )
    # the second round is on weights that differ by the rounding of the first
    assert found == pytest.approx(wanted, rel=1e-2, abs=1e-5)
    assert secure["bytes_up"] > 3 * plain["bytes_up"]


def test_a_secure_simulation_goes_on_without_those_who_drop_out(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=6)
    result = simulate(told, Federation(clients=8, sample=5, drop=0.3, secure_sum=True), tmp_path / "run")
    counts = [line["clients"] for line in lines(tmp_path / "run")[1:]]
    assert result["rounds"] == 6 and min(counts) >= 3 and min(counts) < 5
    with pytest.raises(UserError, match="--secure-sum"):
        Federation(secure_sum=True, aggregate="median")
    with pytest.raises(UserError, match="2 or more"):
        simulate(told, Federation(clients=3, sample=1, secure_sum=True), tmp_path / "one")


def test_a_pool_ends_with_the_digest_that_its_journal_says(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=4, weight_decay=0.0)
    result = simulate(told, Federation(clients=4, sample=2, seed_pool=16), tmp_path / "run")
    assert bz.digest(load(str(tmp_path / "run" / "model"), "float32").model) == result["final_digest"]
    assert not Journal.open(tmp_path / "run" / "journal.bz").exact


def test_a_resumed_simulation_ends_as_one_that_was_not_stopped(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=8)
    federation = Federation(clients=4, sample=2, drop=0.2)
    whole = simulate(told, federation, tmp_path / "whole")
    arguments = [
        *options(told),
        "--rounds=8",
        "--clients=4",
        "--sample=2",
        "--drop=0.2",
        "--output",
        str(tmp_path / "killed"),
    ]
    process = started("simulate", *arguments)
    journal = tmp_path / "killed" / "journal.bz"
    end = time.monotonic() + 120
    while not (journal.is_file() and len(Journal.open(journal)) >= 2) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = resume(tmp_path / "killed")
    assert again["final_digest"] == whole["final_digest"]
    assert again["after"] == whole["after"]
    clocks = ("seconds", "forwards", "overhead", "filled")
    kept = [
        [{k: v for k, v in line.items() if k not in clocks} for line in lines(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    # the line of the round in which it was killed may have been filled in
    assert [line["loss"] for line in kept[0]] == [line["loss"] for line in kept[1]]


def test_the_command_says_what_came_out(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    arguments = [*options(settings(tiny("llama"), rows)), "--rounds", "2", "--output", str(tmp_path / "run")]
    done = blockzo("simulate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 2
    again = blockzo("simulate", *arguments)
    assert again.returncode == 2 and "holds a run already" in again.stderr
    other = blockzo("simulate", "--resume", "--rounds=9", "--lr=1e-3", "--alpha=2", "--output", str(tmp_path / "run"))
    assert other.returncode == 2
    assert "settings: --rounds was 2, now 9; --alpha was 0.5, now 2.0." in other.stderr
    same = blockzo("simulate", "--resume", "--rounds=2", "--lr=0.001", "--clients=8", "--output", str(tmp_path / "run"))
    assert same.returncode == 0, same.stderr


def test_every_setting_is_compared_when_a_simulation_continues() -> None:
    told, federation = Settings("model"), Federation()
    others: dict[str, Any] = {}
    for name, value in {**told.as_dict(), **federation.as_dict()}.items():
        others[name] = (
            not value if isinstance(value, bool) else "7.5" if value is None or isinstance(value, str) else value + 1
        )
    others["device"] = "cpu"
    assert set(others) == {field.name for form in (Settings, Federation) for field in fields(form)}
    for name, other in others.items():
        if name in FREE_ON_RESUME:
            resumed(told, federation, {name: 7 if "rows" in name or name in ("threads", "eval_every") else other})
            continue
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} was .*, now {re.escape(str(other))}"):
            resumed(told, federation, {name: other})
    same = {**told.as_dict(), **federation.as_dict(), "lr": "0.000001", "eps": "0.001"}
    assert resumed(told, federation, same) == (told, federation)


def test_clients_refuse_what_their_policy_does_not_take(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    """As real ones would: with the same words as the answer to a welcome, before anything is written; asked again on resume."""
    told = settings(tiny("llama"), rows, steps=2)
    private = {"privacy": "central", "clip": 4.0, "noise_multiplier": 1.0, "weighting": "equal"}
    policy = tmp_path / "policy.json"

    def asked(**fields: Any) -> str:
        policy.write_text(json.dumps(fields))
        return str(policy)

    for wanted, federation, reason in (
        ({"privacy": "any"}, {}, "the run's privacy is 'none'; this client asks for 'any'"),
        ({"privacy": "central", "least_noise": 1.5}, private, "this client asks for 1.5"),
        ({"privacy": "central", "most_epsilon": 2.0}, private, "this client takes 2 at most"),
        ({"secure_sum": True}, {}, "no signed secure sums"),
        ({"methods": ["FZOO"]}, {}, "takes part in FZOO"),
        ({"most_rounds": 1}, {}, "rounds: 2 in the run, at most 1"),
        ({"methods": 3}, {}, "methods of a client's policy is 3"),
        ({"epsilon": 3}, {}, "a client's policy has no .'epsilon'"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            simulate(told, Federation(clients=4, policy=asked(**wanted), **federation), tmp_path / "run")
        assert "--policy" in str(caught.value) and not (tmp_path / "run").exists()
    taken = Federation(clients=4, policy=asked(privacy="central", most_clip=4.0, most_epsilon=20.0), **private)
    result = simulate(told, taken, tmp_path / "run")
    assert result["rounds"] == 2 and result["federation"]["policy"] == str(policy)
    assert 0 < result["epsilon"] <= 20.0
    asked(privacy="central", most_clip=3.0)
    with pytest.raises(UserError, match="clip 4 .*--policy"):
        resume(tmp_path / "run")
    (tmp_path / "other.json").write_text("{}")
    assert resume(tmp_path / "run", given={"policy": str(tmp_path / "other.json")})["rounds"] == 2
    with pytest.raises(UserError, match="--policy"):
        Federation(engine="fedavg", policy=str(policy))


def test_every_virtual_client_has_the_policy(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=2)
    (tmp_path / "policy.json").write_text(json.dumps({"most_rounds": 2, "most_directions": 100}))
    federation = Federation(clients=3, policy=str(tmp_path / "policy.json"))
    simulation = Simulation(told, federation, tmp_path / "run", prepare(told, print), Reporter())
    run = simulation.run_settings()
    welcome = m.encode(m.Welcome(run.as_dict(), simulation.weights.base_digest, 0), b"12345678")
    for client in simulation._clients().values():
        longer = m.Welcome({**run.as_dict(), "rounds": 3}, simulation.weights.base_digest, 0)
        answer = m.decode(client.handle(m.encode(longer, b"12345678")), None, None)
        assert isinstance(answer, m.Refused) and "rounds: 3 in the run, at most 2" in answer.reason
        assert not isinstance(m.decode(client.handle(welcome) or client.hello(), None, None), m.Refused)


def test_a_column_says_how_many_clients_there_are(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=1)
    assert told.train is not None
    text = Path(told.train).read_text().splitlines()
    lines_of = [f"{text[0]}\tuser", *(f"{line}\tu{i % 11}" for i, line in enumerate(text[1:]))]
    Path(told.train).write_text("\n".join(lines_of) + "\n")
    assert Federation().clients == 8 and Federation(partition="column", column="user").clients is None
    result = simulate(told, Federation(partition="column", column="user"), tmp_path / "run")
    assert result["clients"] == 11


def test_fedavg_of_one_client_is_gradient_descent(tiny: Tiny) -> None:
    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def batch_of(number: int, step: int) -> tuple[Any, int]:
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(10 * number + step))
        return (x, (x.sum(1) > 0).long()), 12

    def loss(net: torch.nn.Module, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(net(batch[0]), batch[1])

    averaged, plain = model(), model()
    engine = FedAvg(Weights(bz.Blocks(averaged, []), base=dict), loss, [batch_of] * 3, local_steps=4)
    descent = torch.optim.SGD(plain.parameters(), lr=0.1)
    for number in range(3):
        engine.round(number, [number], 0.1)
        for step in range(4):
            descent.zero_grad()
            loss(plain, batch_of(number, step)[0]).backward()
            descent.step()
    for one, other in zip(averaged.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert engine.bytes_each_way == 4 * sum(p.numel() for p in plain.parameters())
    # 12 steps of 12 rows: 2 FLOPs a weight of the two layers, three times for forward and backward
    assert engine.flops == pytest.approx(3 * 12 * 12 * 2 * (4 * 8 + 8 * 2), rel=0.2)


def test_fedavg_learns_and_counts_the_weights_that_travel(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    told = settings(tiny("llama"), rows, steps=10, lr="0.3", weight_decay=0.0)
    result = simulate(
        told, Federation(engine="fedavg", clients=4, sample=2, partition="iid", local_steps=3), tmp_path / "run"
    )
    assert result["after"]["loss"] < result["before"]["loss"]
    weights = sum(p.numel() * 4 for p in load(str(tiny("llama")), "float32").model.parameters())
    assert result["bytes_up_of_an_answer"] == weights


@pytest.mark.parametrize(
    ("engine", "model", "lr"), [("zo", "bert", "1e25"), ("zo", "llama", "1e300"), ("fedavg", "llama", "1e25")]
)
def test_losses_that_are_not_finite_end_the_run_with_words(
    engine: str, model: str, lr: str, tiny: Tiny, rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="lower"):
        told = settings(tiny(model), rows, lr=lr, eval_every=100, weight_decay=0.0, steps=5)
        # clients would refuse such a rate before any loss
        (tmp_path / "policy.json").write_text(json.dumps({"most_lr": 1e30}))
        policy = {"policy": str(tmp_path / "policy.json")} if engine == "zo" else {}
        simulate(told, Federation(engine=engine, clients=4, sample=2, **policy), tmp_path / "run")


WRONG = [
    ({"engine": "adam"}, "--engine is 'adam'"),
    ({"partition": "column"}, "--column NAME go together"),
    ({"clients": 2, "sample": 3}, "--sample is 3 of 2 clients"),
    ({"drop": 1.0}, "--drop is 1.0"),
    ({"privacy": "central"}, "go together"),
    ({"clip": 1.0}, "go together"),
    ({"engine": "fedavg", "liars": 0.5}, "plain baseline"),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_wrong_settings_say_what_is_expected(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Federation(**given)


def test_a_planner_plans_the_rounds(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    """Its costs stand in the journal, so a simulation that goes on comes to the plans of one that was not stopped."""
    told = settings(tiny("llama"), rows, method="auto", lr=None, steps=12, eval_every=6, weight_decay=0.0)
    federation = Federation(clients=4, sample=2, liars=0.25)
    result = simulate(told, federation, tmp_path / "run")
    journal = Journal.open(tmp_path / "run" / "journal.bz")
    costs = journal.metadata["federated"]["method"]["costs"]
    assert len(costs) == len(result["blocks"]) > 2 and all(cost > 0 for cost in costs)
    assert {sum(map(bool, record.directions)) for record in journal.records()} == {1}
    base = load(str(tiny("llama")), "float32").model
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == result["final_digest"] and not result["refused"]
    # stopped after five rounds: the first half of the journal
    (tmp_path / "half").mkdir()
    half = Journal.create(tmp_path / "half" / "journal.bz", journal.base_digest, journal.layout, journal.metadata)
    half.extend(journal.records()[:5])
    half.close()
    text = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half" / "metrics.jsonl").write_text("".join(text[:6]))
    assert resume(tmp_path / "half")["final_digest"] == result["final_digest"]


@pytest.mark.parametrize("changed", [{"method": "auto", "lr": None}, {"in_place": True}])
def test_methods_that_cannot_run_in_rounds_are_refused(
    changed: dict[str, Any], tiny: Tiny, rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="simulate runs on weights that are not written"):
        simulate(settings(tiny("llama"), rows, **changed), Federation(engine="fedavg"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
