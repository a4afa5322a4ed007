"""Private rounds: what leaves a client, what the record holds, and that nothing is answered twice."""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import blockzo as bz
from blockzo.federated.client.client import Client
from blockzo.federated.client.worker import Weights, Worker
from blockzo.federated.privacy import settings as privacy
from blockzo.federated.privacy.releases import Releases
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.server.server import Server
from blockzo.simulate.local import LocalTransport
from tests.federated.private_problem import CENTRAL, LOCAL, private, private_run
from tests.federated.problem import Federation, network, settings, teacher_labels, worker


def test_central_rounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation = Federation(tmp_path, chosen=private_run(CENTRAL, rounds=4))
    with caplog.at_level(logging.INFO, "blockzo.federated"):
        results = [federation.transport.round() for _ in range(2)]
        federation.restart_server()
        results += [federation.transport.round() for _ in range(2)]
    assert len(federation.catch_up()) == 1
    assert [r.epsilon for r in results] == [private().epsilon(n) for n in (1, 2, 3, 4)]
    assert sum("epsilon" in text for text in caplog.messages) == 4
    for result in results:
        assert result.record is not None and result.record.losses == (0.0,) and math.isnan(result.loss)


def moved(tmp_path: Path, name: str, chosen: RunSettings, clients: int) -> list[float]:
    folder = tmp_path / name
    folder.mkdir()
    result = Federation(folder, clients, chosen).transport.round()
    assert result.record is not None
    return [c for block in result.record.blocks for c in block.coefficients]


def test_the_central_record_is_the_clipped_mean_plus_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {**CENTRAL, "clip": 1e4}
    plain = moved(tmp_path, "plain", settings(weighting="equal"), 4)
    with monkeypatch.context() as patch:
        patch.setattr(privacy, "discrete_gaussian", lambda variance: 0)
        assert moved(tmp_path, "wide", private_run(wide), 4) == pytest.approx(plain, abs=1e-4)
        tight = moved(tmp_path, "tight", private_run({**CENTRAL, "clip": 1e-3}), 4)
        assert 0 < math.sqrt(math.fsum(c * c for c in tight)) <= 0.05 * 1e-3 * (1 + 1e-6)
        # neighbours: without a client the record changes by clip / clients at most
        less = moved(tmp_path, "less", private_run({**CENTRAL, "clip": 1e-3}), 3)
        change = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(tight, less, strict=True)))
        assert 0 < change <= 0.05 * 1e-3 / 4 * (1 + 1e-5)
    noisy = moved(tmp_path, "noisy", private_run({**CENTRAL, "noise_multiplier": 1e5, "clip": 1e-3}), 4)
    assert max(map(abs, noisy)) > 1e-3


def test_neither_loss_nor_examples_leave_a_client(tmp_path: Path) -> None:
    for name, values in (("c", CENTRAL), ("l", LOCAL)):
        folder = tmp_path / name
        folder.mkdir()
        federation = Federation(folder, 1, private_run(values))
        (task,) = federation.server.open_round(["c0"], 0.0).values()
        reply = m.decode(federation.clients["c0"].handle(task), federation.server.tag, federation.settings)
        assert isinstance(reply, m.Reply) and (reply.loss, reply.examples) == (0.0, 1)


def test_sampled_rounds_always_count(tmp_path: Path) -> None:
    """A round that nobody was drawn for gives noise, and not the news that nobody was."""
    values = {**CENTRAL, "clients": 0.4, "sampling_rate": 0.1}
    federation = Federation(tmp_path, chosen=private_run(values, rounds=40))
    results = [federation.transport.round() for _ in range(40)]
    assert all(r.record is not None and any(r.record.blocks[0].coefficients) for r in results)
    asked = [r.asked for r in results]
    # 160 draws of probability 0.1
    assert 0 in asked and 1 <= sum(asked) <= 45
    assert len(federation.catch_up()) == 1
    assert results[-1].epsilon == private(values).epsilon(40) < private().epsilon(40)


def test_a_sampled_round_is_drawn_once(tmp_path: Path) -> None:
    federation = Federation(tmp_path, chosen=private_run({**CENTRAL, "sampling_rate": 0.5}))
    first = set(federation.server.open_round(federation.clients, 0.0))
    assert all(set(federation.server.open_round(federation.clients, 1.0)) == first for _ in range(20))
    draws = {tuple(private(sampling_rate=0.5).sample(["a", "b", "c"])) for _ in range(400)}
    assert len(draws) == 8


def test_policies_that_would_tell_who_was_drawn(tmp_path: Path) -> None:
    for number, policy in enumerate((RoundPolicy(quorum=2), RoundPolicy(clients=3))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ValueError, match="sampling_rate"):
            Federation(folder, chosen=private_run({**CENTRAL, "sampling_rate": 0.5}), policy=policy)


# local noise


def test_local_noise_differs_between_clients_and_rounds_and_is_sent_once(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 2, private_run(LOCAL, rounds=6))
    tasks = federation.server.open_round(federation.clients, 0.0)
    first = {name: federation.clients[name].handle(task) for name, task in tasks.items()}
    assert first == {name: federation.clients[name].handle(task) for name, task in tasks.items()}
    federation.restart_client("c0")
    assert federation.clients["c0"].handle(tasks["c0"]) == first["c0"], "a restart must not draw again"
    results = [federation.transport.round() for _ in range(3)]
    assert results[-1].epsilon == private(LOCAL).epsilon(3)
    assert len(federation.catch_up()) == 1


def test_a_reset_by_the_server_does_not_buy_a_second_answer(tmp_path: Path) -> None:
    federation = Federation(tmp_path, 1, private_run(LOCAL, rounds=6))
    client, tag = federation.clients["c0"], federation.server.tag
    (task,) = federation.server.open_round(["c0"], 0.0).values()
    answers = [client.handle(task)]
    federation.transport._talk("c0", answers[0])
    federation.server.close_round()
    federation.transport.round()
    client.handle(m.encode(m.Refused(m.DIVERGED, "begin again"), tag))
    assert client.position == 0
    found = m.decode(client.handle(task), tag, federation.settings)
    assert isinstance(found, m.Refused) and "twice" in found.reason
    past = m.decode(client.handle(m.encode(m.Task(6, 0, b""), tag)), tag, federation.settings)
    assert isinstance(past, m.Refused)


def test_local_clients_send_no_scores_and_do_not_show_failures(tmp_path: Path) -> None:
    run = private_run(LOCAL)
    base = worker(0)
    server = Server.create(tmp_path / "s.bz", run, base.base_digest, base.layout)
    broken = Worker(base.weights, base.batch_of, lambda model, batch: torch.tensor(math.nan), base.held_out, 1)
    transport = LocalTransport(server, {"c0": Client(broken, tmp_path / "c.bz")})
    transport.join()
    transport.scores(["c0"])
    assert not server.scores
    result = transport.round()
    assert result.participants == ("c0",) and result.record is not None
    with pytest.raises(ValueError, match="another run|is of the run"):
        Releases(tmp_path / "c.released", b"12345678")
    (tmp_path / "c.released").write_text("{")
    transport.clients["c0"].close()
    with pytest.raises(ValueError, match="restore"):
        Client(worker(0), tmp_path / "c.bz")


# examples


def row_losses(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, labels = batch
    return F.cross_entropy(model(x).float(), labels, reduction="none")


def example_worker(max_group: int, factor: float = 1.0) -> Worker:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    x[2] *= factor
    weights = Weights(bz.Blocks(network(), [1]))
    return Worker(weights, lambda number, step: ((x, teacher_labels(x)), 6), row_losses, max_group=max_group)


@pytest.mark.parametrize("max_group", [1, 4])
@pytest.mark.parametrize(
    "method", [bz.SPZO(1, 3), bz.SPZO(2, 2, "decoupled"), bz.SPZO(1, 2, "crossed"), bz.OneSided(3), bz.MeZO()], ids=str
)
def test_scalars_of_examples(method: Any, max_group: int) -> None:
    """Unclipped, the mean of the examples' scalars is the batch's scalar; clipped, no example moves the sum by more."""

    def scalars(clip: float, factor: float = 1.0) -> list[float]:
        run = private_run({**CENTRAL, "unit": "example", "batch": 6, "clip": clip}, method=method)
        own = example_worker(max_group, factor)
        own.begin(run)
        return list(own.estimate(0, 0).scalars)

    plain = Worker(
        example_worker(1).weights,
        example_worker(1).batch_of,
        lambda model, batch: row_losses(model, batch).mean(),
        max_group=1,
    )
    plain.begin(settings(method))
    assert scalars(1e4) == pytest.approx(list(plain.estimate(0, 0).scalars), abs=5e-2)
    before, after = scalars(1e-2), scalars(1e-2, 1e6)
    change = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(before, after, strict=True)))
    assert 0 < change <= 2 * 1e-2 / 6 * (1 + 1e-6)


def test_clipping_per_example_needs_a_loss_a_row(tmp_path: Path) -> None:
    run = private_run({**CENTRAL, "unit": "example", "batch": 16})
    for own, reason in ((worker(0), "every row"), (example_worker(1), "at most")):
        if reason == "at most":
            run = private_run({**CENTRAL, "unit": "example", "batch": 5})
        own.begin(run)
        with pytest.raises(ValueError, match=reason):
            own.estimate(0, 0)


def test_local_noise_per_example_in_rounds(tmp_path: Path) -> None:
    run = private_run({**LOCAL, "unit": "example", "batch": 6}, rounds=3)
    own = [example_worker(1), example_worker(1, 2.0)]
    replica = example_worker(1).weights
    server = Server.create(tmp_path / "s.bz", run, own[0].base_digest, own[0].layout, replica=replica)
    transport = LocalTransport(server, {f"c{i}": Client(w) for i, w in enumerate(own)})
    transport.join()
    results = [transport.round() for _ in range(3)]
    assert all(len(r.participants) == 2 for r in results) and not server.refusals
    first = [r.record.blocks[0].coefficients for r in results if r.record is not None]
    assert all(a != b for a, b in itertools.combinations(first, 2))
