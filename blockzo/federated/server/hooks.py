"""What a server's owner does after rounds, in the manner of Flower's strategies: `evaluate_fn` and `on_round_end`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blockzo.federated.server.open_round import RoundResult
from blockzo.federated.server.server import Server

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Hooks:
    """Functions that a transport calls on the server's side. The record of a round is on disk before: one that raises ends the
    loop, and the run can be resumed.

    Args:
        evaluate_fn: (rounds so far, model) -> metrics by name, or None. The model is the server's replica, which it must leave as
            it is. Called before the first round, then after every `every` rounds and the last one.
        on_round_end: (result of the round, its metrics) -> nothing; after every round that counts.
    """

    evaluate_fn: Callable[[int, Any], Metrics | None] | None = None
    on_round_end: Callable[[RoundResult, Metrics], None] | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; expected 1 or more rounds between evaluations")

    def begin(self, server: Server) -> dict[str, float]:
        """Metrics before the first round; nothing where a run goes on.

        Raises:
            ValueError: there is an `evaluate_fn` and no model on the server.
        """
        if self.evaluate_fn is not None and getattr(server.replica, "model", None) is None:
            raise ValueError(
                "evaluate_fn scores the server's own model, and this server has none; give it a replica "
                "(blockzo.federated.client.worker.Weights), or leave evaluate_fn out"
            )
        return {} if server.number else self._measured(server)

    def round_ended(self, server: Server, result: RoundResult) -> dict[str, float]:
        """The metrics after a round that counts."""
        due = server.number % self.every == 0 or server.finished
        metrics = self._measured(server) if due else {}
        if self.on_round_end is not None:
            self.on_round_end(result, metrics)
        return metrics

    def _measured(self, server: Server) -> dict[str, float]:
        if self.evaluate_fn is None:
            return {}
        found = self.evaluate_fn(server.number, getattr(server.replica, "model", None))
        try:
            metrics = {str(name): float(value) for name, value in (found or {}).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"evaluate_fn returned {found!r} ({error}); expected numbers by name, or None") from error
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            raise ValueError(f"evaluate_fn returned {metrics}; expected finite numbers")
        return metrics
