"""The federated runs of README's first figures without their hours: their first rounds, and the FLOPs of all by formula.

A batch is a function of seed, client and round, and so are the clients of a round. So the shapes of all batches are known before
anything runs. FLOPs of a forward are `rows (a + b tokens + c tokens^2)`; three counted forwards give a, b and c. The rounds
that do run are counted as they run, and must give the same number to the last digit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import torch

from benchmarks import federated
from benchmarks.harness import Spread, Table
from blockzo.federated.protocol.seeds import chosen
from blockzo.finetune.models.devices import settled
from blockzo.finetune.prepare import Prepared, prepare
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import Settings
from blockzo.perturb import PerturbedForward
from blockzo.simulate.fedavg import BACKWARD
from blockzo.simulate.partitioner import owners
from blockzo.simulate.rounds import Simulation, name_of
from blockzo.simulate.settings import Federation

SEED, RUN_ROUNDS = 0, 2
SCORED = 32
"""Held-out rows: a simulation scores before its first round, and here nobody reads it."""
LENGTHS = (8, 16, 32)
FEDAVG_LR = "0.1"
"""Moves the weights alone: FLOPs and bytes do not depend on it."""


class Enough(Exception):
    """The first rounds are over."""


class FirstRounds(Reporter):
    def __init__(self, rounds: int) -> None:
        self.rounds, self.lines = rounds, list[dict[str, Any]]()

    def step(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if line["step"] == self.rounds:
            raise Enough


def typed(form: type[Any], words: Sequence[str]) -> dict[str, Any]:
    """The fields of a dataclass that `--name value` pairs of a command line are for."""
    pairs = dict(zip((word[2:].replace("-", "_") for word in words[::2]), words[1::2], strict=True))
    hints = get_type_hints(form)
    found = {}
    for one in fields(form):
        if one.name in pairs:
            number = next((kind for kind in (int, float) if kind in (hints[one.name], *_members(hints[one.name]))), str)
            found[one.name] = number(pairs[one.name])
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", ())


@lru_cache
def prepared() -> tuple[Settings, Federation, Prepared]:
    """Of the runs of `benchmarks/federated.py accuracy`, seed 0; model and rows are those of FedAvg too."""
    words = [*federated.COMMON, *federated.METHODS["spzo"][0], *federated.FALLING, "--seed", str(SEED)]
    words += ["--lr", federated.LIAR_RATES]
    federation = Federation(**typed(Federation, words))
    settings = Settings(**typed(Settings, words), steps=federated.ROUNDS, eval_rows=SCORED, final_rows=SCORED)
    settings = settled(settings)
    return (
        settings,
        federation,
        prepare(settings, lambda text: print(text, flush=True), None, owners=owners(federation)),
    )


def simulation(engine: str, folder: Path, reporter: Reporter) -> Simulation:
    settings, federation, ready = prepared()
    if engine == "fedavg":
        settings = replace(settings, method="mezo", split=None, lr=FEDAVG_LR, steps=federated.COLD_ROUNDS)
        federation = replace(federation, engine=engine)
    return Simulation(settings, federation, folder, ready, reporter)


def shapes(found: Simulation, rounds: int) -> list[list[tuple[int, int]]]:
    """(rows, tokens) of the batches of every round."""
    names = [name_of(client) for client in range(len(found.parts))]
    run, count = bytes.fromhex(found.run), found.federation.sample
    picked = [[names.index(name) for name in chosen(run, number, 0, names, count)] for number in range(rounds)]
    return [
        [tuple(found.batches[client](number, 0)[0]["ids"].shape) for client in clients]
        for number, clients in enumerate(picked)
    ]


@lru_cache
def coefficients() -> tuple[Fraction, Fraction, Fraction]:
    """a, b and c of a plain forward's FLOPs, for one row of `tokens`: a + b tokens + c tokens^2."""
    (x, y, z), (p, q, r) = LENGTHS, [Fraction(plain_flops(1, tokens)) for tokens in LENGTHS]
    c = ((r - p) / (z - x) - (q - p) / (y - x)) / (z - y)
    b = (q - p) / (y - x) - c * (x + y)
    return p - b * x - c * x * x, b, c


def plain_flops(rows: int, tokens: int) -> int:
    """As counted while a forward runs."""
    *_, ready = prepared()
    ids = torch.full((rows, tokens), 1000)
    batch = {"ids": ids, "mask": torch.ones_like(ids), "positions": torch.full((rows,), tokens - 1)}
    batch["labels"] = torch.zeros(rows, dtype=torch.int64)
    with torch.no_grad(), PerturbedForward() as counted:
        ready.scorer.loss(ready.model, batch)
    return counted.flops


def formula(found: Simulation, rounds: int) -> int:
    """FLOPs of the first rounds: of FedAvg a forward and a backward pass of a batch, of SPZO its tree of evaluations."""
    a, b, c = coefficients()
    plain = [(rows, rows * (a + b * tokens + c * tokens**2)) for one in shapes(found, rounds) for rows, tokens in one]
    if found.federation.engine == "fedavg":
        return int(sum((1 + BACKWARD) * flops for _, flops in plain))
    tree = found.settings.estimator().tree(len(found.blocks))
    head = head_flops(found)
    return int(sum(tree.flops([flops - rows * head, rows * head]) for rows, flops in plain))


def head_flops(found: Simulation) -> int:
    """Of the block behind the cut, for one row: its linear layer."""
    *_, head = (module for module in found.blocks.model.modules() if isinstance(module, torch.nn.Linear))
    return 2 * head.weight.numel()


@lru_cache
def first_rounds(engine: str) -> dict[str, float]:
    """Bytes an answer, FLOPs of the whole run, and the loss at the end of the first rounds; weights are as they were after."""
    *_, ready = prepared()
    before = {name: tensor.clone() for name, tensor in ready.model.state_dict().items()}
    reporter = FirstRounds(RUN_ROUNDS if engine == "zo" else 1)
    with tempfile.TemporaryDirectory() as folder:
        found = simulation(engine, Path(folder) / engine, reporter)
        try:
            found.go(None, _no_end)
        except Enough:
            pass
        last = reporter.lines[-1]
        stated = formula(found, last["step"])
        print(f"{engine}: {last['step']} round(s), {last['flops']:.0f} FLOPs counted, {stated} by formula", flush=True)
        whole = formula(found, found.settings.steps)
    ready.model.load_state_dict(before)
    return {
        "counted": float(last["flops"]),
        "stated": float(stated),
        "TFLOP": whole / 1e12,
        "bytes": last["up"] / (last["step"] * (found.federation.sample or len(found.parts))),
        "loss": float(last["loss"]),
    }


def _no_end(*told: Any) -> dict[str, Any]:
    raise AssertionError("the first rounds were all")


CASES = {
    "zo": f"MiniLM SST-2 FedSPZO, {federated.ROUNDS} rounds, seed {SEED}",
    "fedavg": f"MiniLM SST-2 fedavg, new head, seed {SEED}",
}


def flops(table: Table) -> None:
    for engine, case in CASES.items():
        found = first_rounds(engine)
        table.add(case, "TFLOP", Spread.of([found["TFLOP"]]), "TFLOP")
        table.add(
            case,
            "FLOPs of the first rounds, counted over formula",
            Spread.of([found["counted"] / found["stated"]]),
            "x",
        )
    table.add(CASES["zo"], f"loss of round {RUN_ROUNDS}", Spread.of([first_rounds("zo")["loss"]]), "nats")


def bytes_up(table: Table) -> None:
    for engine, case in CASES.items():
        table.add(case, "bytes up an answer", Spread.of([first_rounds(engine)["bytes"]]), "B")
