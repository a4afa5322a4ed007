"""A search for inputs with which one unit moves a release by more than epsilon is computed for.

Two runs in lockstep, without the noise: whole server, client, worker and messages, on data that differ by one unit. A row's
loss is any function of that row and the weights: a number, a special one or an exception, looked up by how the weights are moved.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import blockzo as bz
from blockzo.federated.client.client import Client
from blockzo.federated.client.worker import Weights, Worker, directions_of
from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.protocol import messages as m
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.server.server import Server
from blockzo.methods.base import Method

# powers of two, so that integers come back out of float32 exactly
CLIP, EPS, LR = 4.0, 2.0**-3, 2.0**-30
BATCH, CLIENTS, PATTERNS = 4, 3, 6
SPECIAL = (
    *(math.nan, math.inf, -math.inf, 3.4028235e38, -3.4028235e38, 1e-45, -1e-45, 1.1754944e-38, 0.0, -0.0, 1e30, -1e30),
    *(CLIP * EPS, -CLIP * EPS, 2 * CLIP * EPS, 1.0, -1.0, 1e-6, 1e6, CLIP * EPS * (1 - 2**-20), 16777217.0),
)
FAILURES: tuple[type[Exception], ...] = (ValueError, RuntimeError, IndexError, MemoryError, OSError, ZeroDivisionError)


@dataclass(frozen=True)
class Row:
    """Losses by pattern of the moved weights; `fails`: pattern -> number of an exception."""

    losses: tuple[float, ...] = (0.0,) * PATTERNS
    fails: int | None = None
    pattern: int = 0


@dataclass(frozen=True)
class Data:
    """Rows of a client; `fails`: its data cannot be read."""

    rows: tuple[Row, ...]
    fails: int | None = None


World = tuple[Data, ...]
NOTHING = Data((Row(),))


def pattern_of(moved: torch.Tensor) -> int:
    """A number for which way the weights are moved, none included."""
    return (
        sum((int(v > EPS / 2) * 2 + int(v < -EPS / 2)) * 3**at for at, v in enumerate(moved.flatten().tolist()))
        % PATTERNS
    )


class Machine(Worker):
    """A worker whose data can be changed from round to round.

    Args:
        by_row: the loss is one of every row.
        apart: rows are evaluated by themselves, so that a tensor says how many there are.
    """

    def __init__(self, by_row: bool, apart: bool = False) -> None:
        model = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        self.data = NOTHING

        def batch_of(number: int, step: int) -> tuple[Any, int]:
            if not step:
                # epsilon composes over rounds that begin alike: what was released before is the same in both runs, and so are
                # the weights. Here nothing is hidden by noise, so the runs' own histories differ
                torch.nn.init.zeros_(model.weight)
            if self.data.fails is not None:
                raise FAILURES[self.data.fails]("the data cannot be read")
            rows = list(self.data.rows)
            return (torch.zeros(len(rows), 1), rows) if apart else rows, len(rows)

        def loss_fn(net: torch.nn.Module, batch: Any) -> torch.Tensor:
            rows: list[Row] = batch[1] if apart else batch
            pattern = pattern_of(net(torch.eye(4)))
            for row in rows:
                if row.fails is not None and row.pattern == pattern:
                    raise FAILURES[row.fails]("this row says: secret")
            losses = torch.tensor([row.losses[pattern] for row in rows], dtype=torch.float32)
            return losses if by_row else losses.mean()

        super().__init__(Weights(bz.Blocks(model, [])), batch_of, loss_fn, max_group=1)


@dataclass
class Scene:
    """How rounds are run."""

    mode: str
    unit: str
    method: Method = field(default_factory=lambda: bz.SPSA(2))
    policy: RoundPolicy = field(default_factory=lambda: RoundPolicy(digest_every=0))
    local_steps: int = 1
    per_example: bool = False

    def settings(self) -> RunSettings:
        private = PrivacySettings(
            self.mode, CLIP, 1.0, 1e-5, clients=4.0, unit=self.unit, batch=BATCH if self.unit == "example" else 1
        )
        return RunSettings(
            "00112233445566778899aabbccddeeff", self.method.describe(), directions_of(self.method, 1), rounds=1 << 20,
            lr=(LR,), eps=(EPS,), weighting="equal", local_steps=self.local_steps, privacy=private.as_dict(),
            per_example=BATCH if self.per_example else 0,
        )  # fmt: skip


@dataclass
class Seen:
    """What a round shows: integers by whom they are released, and everything else that somebody sees."""

    released: dict[str, list[int]]
    shown: list[Any]


class Run:
    """One of the two runs."""

    def __init__(self, path: Path, scene: Scene) -> None:
        self.scene, self.settings = scene, scene.settings()
        self.machines = [Machine(scene.unit == "example", scene.per_example) for _ in range(CLIENTS)]
        first = self.machines[0]
        self.server = Server.create(path, self.settings, first.base_digest, first.layout, scene.policy)
        self.clients = {f"c{i}": Client(machine) for i, machine in enumerate(self.machines)}
        for name, client in self.clients.items():
            client.handle(self.server.receive(name, client.hello()))

    def round(self, world: World, lost: str = "") -> Seen:
        """One round; the answer of `lost` does not arrive."""
        private = self.settings.private
        assert private is not None
        for machine, data in zip(self.machines, world, strict=True):
            machine.data = data
        shown: list[Any] = []
        released: dict[str, list[int]] = {}
        tasks = self.server.open_round(self.clients, 0.0)
        shown.append(sorted(tasks))
        for name, task in tasks.items():
            answer = self.clients[name].handle(task)
            reply = m.decode(answer, self.server.tag, self.settings)
            assert isinstance(reply, m.Reply), reply
            shown.append((name, len(answer), reply.loss, reply.examples, reply.digest))
            if private.mode == "local":
                # what leaves is seen by everyone
                released[name] = [whole(v, private.levels * private.batch / CLIP) for v in reply.scalars]
            if name != lost:
                shown.append((name != "", m.kind_of(self.server.receive(name, answer))))
            else:
                shown.append((True, m.ACCEPTED))
        result = self.server.close_round()
        shown += [result.number, result.attempt, result.asked, result.record is None, math.isnan(result.loss)]
        shown.append(sorted(self.server.refusals.items()))
        if result.record is not None and private.mode == "central":
            scale = private.levels * private.clients * private.batch / (CLIP * LR)
            released["server"] = [whole(c, scale) for block in result.record.blocks for c in block.coefficients]
        return Seen(released, shown)


def whole(value: float, scale: float) -> int:
    found = value * scale
    assert found == int(found), "not on the grid"
    return int(found)


class Pair:
    """Two runs that see neighbouring data; `change` is the largest movement of what is released, over the bound of epsilon."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.scene = scene
        self.one, self.other = Run(folder / "one.bz", scene), Run(folder / "other.bz", scene)

    def change(self, world: World, neighbour: World, lost: str = "") -> float:
        first, second = self.one.round(world), self.other.round(neighbour, lost)
        assert first.shown == second.shown, (first.shown, second.shown)
        private = self.scene.settings().private
        assert private is not None and first.released.keys() == second.released.keys()
        moved = [
            math.sqrt(sum((a - b) ** 2 for a, b in zip(first.released[who], second.released[who], strict=True)))
            for who in first.released
        ]
        return max(moved, default=0.0) / private.levels

    def close(self) -> None:
        self.one.server.close()
        self.other.server.close()


Case = tuple[World, int, int, int]
"""Data, the unit's client and row, and how it is taken away."""


def neighbours(scene: Scene, case: Case) -> tuple[World, World, str]:
    """With and without one unit: a row that is not there, or says nothing; a client that is not there, or has nothing to say."""
    world, client, place, how = case
    data, lost = world[client], ""
    if scene.unit == "example":
        place %= len(data.rows)
        kept = (data.rows[:place], data.rows[place + 1 :])
        # where places number directions, what is taken away leaves its place, as the last one does by itself
        gone = how % 2 and len(data.rows) > 1 and not (scene.per_example and kept[1])
        without = replace(data, rows=kept[0] + kept[1] if gone else (*kept[0], Row(), *kept[1]))
    else:
        without = (NOTHING, replace(data, fails=how % len(FAILURES)), NOTHING)[how % 3]
        if how % 3 == 2 and scene.mode == "central":
            without, lost = data, f"c{client}"
    return world, (*world[:client], without, *world[client + 1 :]), lost


class Draw:
    """Random cases, and changes of cases."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self.scene, self.chance = scene, chance

    def loss(self) -> float:
        kind = self.chance.random()
        if kind < 0.4:
            return self.chance.choice(SPECIAL)
        if kind < 0.7:
            return self.chance.uniform(-3, 3) * CLIP * EPS
        return math.copysign(10 ** self.chance.uniform(-45, 38.5), self.chance.random() - 0.5)

    def row(self) -> Row:
        fails = self.chance.randrange(len(FAILURES)) if self.chance.random() < 0.1 else None
        return Row(tuple(self.loss() for _ in range(PATTERNS)), fails, self.chance.randrange(PATTERNS))

    def data(self) -> Data:
        # with unit "example" that data cannot be read is no property of a row
        fails = self.scene.unit == "client" and self.chance.random() < 0.1
        count = self.chance.randint(1, BATCH)
        return Data(tuple(self.row() for _ in range(count)), self.chance.randrange(len(FAILURES)) if fails else None)

    def case(self) -> Case:
        world = tuple(self.data() for _ in range(CLIENTS))
        if self.chance.random() < 0.3:
            # all pull the same way as far as they may, but for one: what it takes with it shows
            client, place = self.chance.randrange(CLIENTS), self.chance.randrange(BATCH)
            row = Row(tuple(self.chance.choice((-1e6, 1e6)) for _ in range(PATTERNS)))
            odd = replace(self.row(), fails=self.chance.choice((None, 0, 3)))
            rows = tuple(odd if at == place else row for at in range(BATCH))
            world = tuple(Data(rows if at == client else (row,) * BATCH) for at in range(CLIENTS))
            return world, client, place, self.chance.randrange(1 << 10)
        return world, self.chance.randrange(CLIENTS), self.chance.randrange(BATCH), self.chance.randrange(1 << 10)

    def changed(self, case: Case) -> Case:
        """One client, row or loss is another one."""
        world, client, place, how = case
        kind, at = self.chance.random(), self.chance.randrange(CLIENTS)
        if kind < 0.1:
            return world, self.chance.randrange(CLIENTS), self.chance.randrange(BATCH), self.chance.randrange(1 << 10)
        data = world[at]
        if kind < 0.2:
            data = self.data()
        else:
            place_of = self.chance.randrange(len(data.rows))
            row = self.row() if kind < 0.4 else data.rows[place_of]
            losses = list(row.losses)
            number = self.chance.randrange(PATTERNS)
            losses[number] = self.loss() if kind < 0.8 else losses[number] * self.chance.uniform(-2, 2)
            row = replace(row, losses=tuple(losses))
            data = replace(data, rows=(*data.rows[:place_of], row, *data.rows[place_of + 1 :]))
        return (*world[:at], data, *world[at + 1 :]), client, place, how


def search(pair: Pair, count: int, seed: int, note: Callable[[float], None] = lambda found: None) -> float:
    """The largest change over so many inputs: random ones, and changes of those that moved most so far."""
    chance = random.Random(seed)
    draw = Draw(pair.scene, chance)
    best: list[tuple[float, Case]] = []
    largest = 0.0
    for _ in range(count):
        case = draw.case() if not best or chance.random() < 0.3 else draw.changed(chance.choice(best)[1])
        found = pair.change(*neighbours(pair.scene, case))
        note(found)
        largest = max(largest, found)
        best = sorted([*best, (found, case)], key=lambda held: -held[0])[:16]
    return largest
