"""README's figures of time and memory at quick size: the same functions that fill the committed rows, fewer rounds of them."""

from __future__ import annotations

from concurrent.futures import Future, wait
from functools import lru_cache
from threading import Thread

import blockzo as bz
from benchmarks import federated, perturbed, step
from benchmarks.harness import Spread, Table

SHAPE, SMALL = (16, 64), (4, 16)


@lru_cache
def peaks() -> Future[dict[str, list[int]]]:
    """Begins to measure memory, in processes of its own: beside work that reads no clock it costs no time."""
    found: Future[dict[str, list[int]]] = Future()

    def run() -> None:
        try:
            found.set_result(step.peaks_of(("perturbed",), times=1, steps=1))
        except Exception as error:
            found.set_exception(error)

    Thread(target=run, daemon=True).start()
    return found


def losses(table: Table) -> None:
    if peaks.cache_info().currsize:
        # nothing runs beside a clock
        wait([peaks()])
    name, model = "OPT-125M", perturbed.opt_125m()
    # a small batch does for waking up: a large one takes seconds
    perturbed.over_two_forwards(Table("unsaved"), name, model, SMALL, "rademacher", rounds=1, warmup=0, whole=False)
    perturbed.over_two_forwards(table, name, model, SHAPE, "rademacher", rounds=3, warmup=0, whole=False)
    data = perturbed.small_batch(*SHAPE)
    cost = bz.cost(bz.Blocks(model, []), bz.MeZO(), batch=data, loss_fn=perturbed.last_token_loss)
    case = f"{name} float32 {SHAPE[0]} x {SHAPE[1]} rademacher"
    table.add(case, "FLOPs of both losses", Spread.of([cost.flops / 1e12]), "TFLOP")


def memory(table: Table) -> None:
    step.tell_peaks(table, peaks().result())


def catch_up(table: Table) -> None:
    federated.catch_up(table, rounds=30, times=2, beside=1, timed=2)
