"""Flower's ServerApp: opens or resumes the run's journal, runs its rounds, writes the result."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from blockzo.federated.flower.exchange import Exchange
from blockzo.federated.flower.identity import Identities
from blockzo.federated.flower.plan import open_server, server_folder, serving
from blockzo.federated.flower.rounds import Rounds
from blockzo.federated.flower.waits import bound_waits
from blockzo.federated.server.hooks import Hooks
from blockzo.federated.server.open_round import RoundResult
from blockzo.federated.server.server import Server

log = logging.getLogger("flwr")


def simulated(grid: Grid) -> bool:
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def server_app(hooks: Hooks | None = None) -> ServerApp:
    """The ServerApp of an app; its settings are the run configuration (docs/flower.md).

    Args:
        hooks: called after rounds; metrics stand in `rounds.jsonl` and `result.json`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid, dict(context.run_config), hooks or Hooks())

    return app


def run(grid: Grid, config: dict[str, Any], hooks: Hooks) -> None:
    bound_waits()
    folder = server_folder(config)
    with serving(folder):
        (folder / "result.json").unlink(missing_ok=True)
        server = open_server(config)
        try:
            write(folder / "result.json", _run(grid, config, server, folder, hooks))
        finally:
            server.close()


def _run(grid: Grid, config: dict[str, Any], server: Server, folder: Path, hooks: Hooks) -> dict[str, Any]:
    identities = Identities(str(config.get("identity") or "auto"), simulated(grid))
    exchange = Exchange(grid, server.settings.run, identities, ttl=server.policy.deadline + 60)
    rounds = Rounds(server, exchange, int(config.get("clients", 1)))
    began, first = time.monotonic(), server.number
    if not first:
        # of an earlier run of this name
        (folder / "rounds.jsonl").unlink(missing_ok=True)
    log.info("run %s at round %d of %d", server.settings.run, first, server.settings.rounds)
    times: list[float] = []
    scores: list[tuple[int, int, float, float]] = []
    epsilon: list[float] = []
    metrics: list[tuple[int, dict[str, float]]] = []
    every = int(config.get("evaluate-every", 0))
    if every and server.settings.secure_sum:
        raise ValueError(f"evaluate-every is {every} with secure-sum, where no client tells anything alone; expected 0")

    def note(measured: dict[str, float]) -> None:
        if measured:
            metrics.append((server.number, measured))
            log.info("after %d rounds: %s", server.number, measured)

    def report(result: RoundResult) -> None:
        times.append(time.monotonic() - began)
        if result.epsilon is not None:
            epsilon[:] = [result.epsilon]
        log.info(
            "round %d: loss %.4f, %d clients, %d rows, %.2f s since the start%s",
            result.number, result.loss, len(result.participants), result.examples, times[-1],
            "" if result.epsilon is None else f", epsilon {result.epsilon:.4g}",
        )  # fmt: skip
        measured: dict[str, float] = {}
        try:
            measured = hooks.round_ended(server, result)
        finally:
            note_round(folder / "rounds.jsonl", result, measured)
        note(measured)
        if every and server.number % every == 0:
            found = rounds.scores(server.policy.deadline)
            if found is not None:
                scores.append((server.number, *found))
                log.info("after %d rounds: %d rows, loss %.4f, accuracy %.4f", *scores[-1])

    note(hooks.begin(server))
    rounds.run(report)
    # what the wire carried for the rounds alone, before everyone is brought up to date
    up, down, messages = dict(exchange.up), dict(exchange.down), exchange.messages
    peers = rounds.synchronize(exchange.ttl)
    return {
        "run": server.settings.run,
        "rounds": server.number,
        "first_round": first,
        "round_end_seconds": [round(t, 3) for t in times],
        "payload_up": up,
        "payload_down": down,
        "messages": messages,
        "refusals": [[name, code, count] for (name, code), count in sorted(server.refusals.items())],
        "digest": server.replica.digest() if server.replica is not None else None,
        "scores": scores,
        "metrics": metrics,
        "epsilon": epsilon[0] if epsilon else None,
        "clients": {name: peer.about for name, peer in sorted(peers.items())},
    }


def note_round(path: Path, result: RoundResult, metrics: dict[str, float]) -> None:
    """A line for a round that counts. The journal is the truth; this is to look at while a run goes on."""
    facts = {
        "round": result.number,
        "attempt": result.attempt,
        "participants": result.participants,
        "examples": result.examples,
        # with privacy no client tells it
        "loss": None if math.isnan(result.loss) else result.loss,
        "epsilon": result.epsilon,
        **({"metrics": metrics} if metrics else {}),
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def write(path: Path, result: dict[str, Any]) -> None:
    """All of it or nothing."""
    new = path.with_name(path.name + ".new")
    with open(new, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    log.info("result: %s", path)
