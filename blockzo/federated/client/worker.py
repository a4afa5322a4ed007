"""A client's model and data: estimates scalars for a round, and follows the run's records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from blockzo import ops
from blockzo.federated.client.per_example import (
    ExampleExecutor,
    example_scalars,
    losses_of_row,
    losses_of_rows,
    scattered,
)
from blockzo.federated.client.weights import Weights
from blockzo.federated.protocol.addresses import noise_seed, step_directions
from blockzo.federated.protocol.estimate import Estimate
from blockzo.federated.protocol.examples import padded
from blockzo.federated.protocol.planned import mark_of
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.record import BlockUpdate, Record, float32
from blockzo.methods.base import Method, described
from blockzo.methods.tree import EvaluationTree
from blockzo.noise import Noise
from blockzo.ops.params import whole_targets
from blockzo.optim.evaluation import Evaluation
from blockzo.optim.examples import Examples, numbers, scalars_of
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.micro_batches import MicroBatches, loss_terms, parts_of
from blockzo.optim.reuse import Reuse
from blockzo.optim.separate import Separate
from blockzo.perturb import check_reads
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.grouping import MaxGroup
from blockzo.perturb.losses import LossFunction, evaluation_mode, hugging_face_loss

BatchOf = Callable[[int, int], tuple[Any, int]]
"""(round, local step) -> batch and its number of rows; a function of these alone, so that a repeated round sees the same rows."""
__all__ = ["Weights", "Worker", "directions_of"]
E = TypeVar("E", bound=PerturbedExecutor)
_looked_at: WeakKeyDictionary[Blocks, set[LossFunction]] = WeakKeyDictionary()
"""Losses that `check_reads` found nothing in."""


def directions_of(method: Method, blocks: int) -> tuple[int, ...]:
    """Perturbations of each block in one step of a method."""
    return method.tree(blocks).directions


class Worker:
    """Estimates of one client on the weights of a run.

    Args:
        weights: of this machine.
        batch_of: the client's training data.
        loss_fn: as of `blockzo.ZO`; for runs with privacy unit "example" it returns the loss of every row, shape (rows,), each a
            function of that row alone.
        held_out: () -> (rows, loss, accuracy) of the client's held-out data at the present weights.

    Attributes:
        flops, seconds: forward FLOPs so far, and the time they took.
    """

    def __init__(
        self,
        weights: Weights,
        batch_of: BatchOf,
        loss_fn: LossFunction | None = None,
        held_out: Callable[[], tuple[int, float, float]] | None = None,
        max_group: MaxGroup = "auto",
    ) -> None:
        self.weights, self.batch_of, self.held_out = weights, batch_of, held_out
        self.loss_fn = loss_fn or hugging_face_loss
        self.max_group = max_group
        self.base_digest = weights.base_digest
        self.layout = weights.blocks.layout
        self.blocks = len(weights.blocks)
        self.flops = 0
        self.seconds = 0.0
        self._settings: RunSettings | None = None
        self._method: Method | None = None
        self._examples: Examples | None = None

    @property
    def model(self) -> nn.Module:
        return self.weights.blocks.model

    def begin(self, settings: RunSettings) -> None:
        if settings.planned:
            moved = set(self.layout.values())
            if any(bool(count) != (block in moved) for block, count in enumerate(settings.directions)):
                raise ValueError(
                    f"the settings have {settings.directions} directions; this model has weights in {sorted(moved)}"
                )
            self._settings, self._method = settings, None
            self.weights.begin(settings)
            return
        method = described(settings.method)
        counts = directions_of(method, settings.blocks)
        if counts != settings.directions:
            raise ValueError(f"the method makes {counts} directions a block, the settings say {settings.directions}")
        self._settings, self._method = settings, method
        self.weights.begin(settings)

    def reset(self, snapshot: Mapping[str, Any] | None = None) -> None:
        self.weights.reset(snapshot)

    def replay(self, records: Sequence[Record]) -> None:
        self.weights.replay(records)

    def digest(self) -> str:
        return self.weights.digest()

    def save(self, path: Path) -> None:
        self.weights.save(path)

    def scores(self) -> tuple[int, float, float]:
        if self.held_out is None:
            raise ValueError("this client has no held-out data to score")
        return self.held_out()

    def estimate(self, number: int, slot: int) -> Estimate:
        """Scalars of one round; between local steps the client moves by its own estimates, and goes back at the end."""
        settings = self._settings
        assert settings is not None
        if settings.planned:
            return self._planned(settings, number)
        scalars: list[float] = []
        losses: list[float] = []
        counts: list[int] = []
        rows = 0
        kept = self.weights.take() if settings.local_steps > 1 else None
        try:
            for step in range(settings.local_steps):
                batch, count = self.batch_of(number, step)
                found, loss = self._step(settings, number, slot, step, batch, count)
                rows += count
                losses.append(loss)
                if settings.per_example:
                    counts.append(
                        max(len(block) // n for block, n in zip(found, settings.directions, strict=True) if n)
                    )
                scalars += [s for block in found for s in block]
                if step + 1 < settings.local_steps:
                    self._move(settings, number, slot, step, found)
        finally:
            if kept is not None:
                self.weights.put(kept)
        if not settings.counted:
            # the number of examples is not told
            scalars, counts = padded(settings, scalars, counts), []
        return Estimate(tuple(scalars), math.fsum(losses) / len(losses), rows, tuple(counts))

    def _planned(self, settings: RunSettings, number: int) -> Estimate:
        """The losses that this participant's planner asks for."""
        assert self.weights.planner is not None
        plan = self.weights.planner.plan(number)
        batch, rows = self.batch_of(number, 0)
        self._check_reads(batch)
        noises = [Noise(plan.seed, distribution, settings.rank) for distribution in settings.distributions]
        executor = PerturbedExecutor(
            self.weights.blocks,
            noises,
            plan.eps,
            self.max_group,
            reuse=Reuse.of(self.weights.blocks, self.loss_fn),
            moved=settings.moved,
        )
        self._method = plan.method
        found = self._run(executor, batch)
        losses = tuple(map(float32, found.losses))
        return Estimate(losses, math.fsum(losses) / len(losses), rows, plan=mark_of(plan))

    def _noises(self, settings: RunSettings, number: int) -> list[Noise]:
        seed = noise_seed(settings, number)
        return [Noise(seed, distribution, settings.rank) for distribution in settings.distributions]

    def _step(
        self, settings: RunSettings, number: int, slot: int, step: int, batch: Any, rows: int
    ) -> tuple[list[list[float]], float]:
        """Scalars of each block, and the mean of the losses."""
        assert self._method is not None
        private = settings.private
        if private is not None and private.unit == "example":
            # one local step, so that this is the whole reply; losses do not leave
            units = self._units(settings, number, slot, batch, rows, private.batch)
            every = iter(private.mean_of(units, settings.scalars))
            return [list(islice(every, count)) for count in settings.numbered], 0.0
        if private is None:
            # not where a refusal, which depends on the data, would say who takes part
            self._check_reads(batch)
        if settings.per_example:
            found = self._each(settings, number, slot, step, batch, rows)
            assert found.examples is not None
            scalars = scalars_of(self._method, *found.examples, settings.eps)
        else:
            directions = step_directions(settings, number, slot, step)
            found = self._run(self._executor(PerturbedExecutor, settings, directions, number), batch)
            scalars = self._method.scalars(found.losses, settings.eps)
        return [list(block.values()) for block in scalars], math.fsum(found.losses) / len(found.losses)

    def _check_reads(self, batch: Any) -> None:
        """Once for each loss and model: does the loss read weights that are not moved?"""
        looked = _looked_at.setdefault(self.weights.blocks, set())
        if self.loss_fn in looked:
            return
        with evaluation_mode(self.model):
            part = parts_of(batch, self._weight)[0].batch
            check_reads(whole_targets(self.model, "a federated round"), lambda: self.loss_fn(self.model, part))
        looked.add(self.loss_fn)

    def _executor(self, kind: type[E], settings: RunSettings, directions: Sequence[Sequence[int]], number: int) -> E:
        noises = self._noises(settings, number)
        reuse = Reuse.of(self.weights.blocks, self.loss_fn)
        return kind(
            self.weights.blocks, noises, settings.eps, self.max_group, directions, reuse=reuse, moved=settings.moved
        )

    def _run(self, executor: PerturbedExecutor, batch: Any) -> Evaluation:
        # a client may hand over micro-batches
        parts = parts_of(batch, self._weight)
        return self._timed(lambda tree: executor.run_parts(tree, parts, lambda one: self.loss_fn(self.model, one)))

    def _each(self, settings: RunSettings, number: int, slot: int, step: int, batch: Any, rows: int) -> Evaluation:
        """Every example along directions of its own: those of the step, in their order (`protocol.examples`)."""
        if rows > settings.per_example:
            raise ValueError(
                f"a batch of {rows} rows; expected {settings.per_example} at most (per_example of the run)"
            )
        every = step_directions(settings, number, slot, step)

        def executor(own: Sequence[Sequence[int]]) -> PerturbedExecutor:
            numbers = [[known[k] for k in block] for known, block in zip(every, own, strict=True)]
            return self._executor(PerturbedExecutor, settings, numbers, number)

        if self._examples is None:
            # a private client's reply is a function of its own data alone
            known = None if settings.private else Separate.of(self.weights.blocks, self.loss_fn)
            self._examples = Examples(self.weights.blocks, self.loss_fn, self._weight, known)
        parts, examples = parts_of(batch, self._weight), self._examples
        return self._timed(lambda tree: examples.run(tree, parts, executor))

    def _weight(self, batch: Any) -> float:
        return loss_terms(self.model, batch)

    def _timed(self, run: Callable[[EvaluationTree], Evaluation]) -> Evaluation:
        assert self._method is not None
        began = time.perf_counter()
        found = run(self._method.tree(self.blocks))
        self.seconds += time.perf_counter() - began
        self.flops += found.flops
        return found

    def _units(
        self, settings: RunSettings, number: int, slot: int, batch: Any, rows: int, most: int
    ) -> list[list[float]]:
        """Scalars of every row; a row that fails has NaN, and no other row sees it."""
        assert self._method is not None
        if rows > most:
            raise ValueError(f"a batch of {rows} rows; expected {most} at most (privacy batch)")
        every = step_directions(settings, number, slot, 0)

        def run(part: Any, directions: Sequence[Sequence[int]] = every) -> list[list[float]]:
            executor = self._executor(ExampleExecutor, settings, directions, number)
            self._run(executor, part)
            return executor.rows

        if not settings.per_example:
            return example_scalars(self._method, losses_of_rows(run, batch, rows), settings.eps)
        if isinstance(batch, MicroBatches):
            raise ValueError(
                "a batch of micro-batches, whose rows have no places; expected one batch (privacy unit example)"
            )
        units = []
        for row in range(rows):
            # its place in the batch alone says which are its own
            places = numbers(settings.directions, row, settings.per_example)
            own = [[known[k] for k in block] for known, block in zip(every, places, strict=True)]
            losses = losses_of_row(
                partial(run, directions=own), batch, row, rows, self._method.tree(self.blocks).leaves
            )
            (scalars,) = example_scalars(self._method, losses, settings.eps)
            units.append(scattered(scalars, places, settings.numbered))
        return units

    def _move(self, settings: RunSettings, number: int, slot: int, step: int, scalars: list[list[float]]) -> None:
        rates = settings.rates(number)
        updates = []
        moved_by = step_directions(settings, number, slot, step)
        for block, (every, found) in enumerate(zip(moved_by, scalars, strict=True)):
            distribution = settings.distributions[block]
            moved = tuple(rates[block] * s for s in found)
            updates.append(
                BlockUpdate(every[: len(moved)], moved, rates[block], settings.eps[block], distribution=distribution)
            )
        seed = noise_seed(settings, number)
        record = Record(0, seed, settings.distributions[0], tuple(updates), rank=settings.rank)
        ops.replay_(self.model, [record], self.weights.blocks.layout)
