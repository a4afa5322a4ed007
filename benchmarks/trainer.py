"""A step through Hugging Face's Trainer against the same step of a plain loop: SmolLM2-135M, 16 rows, both with a journal.

    python benchmarks/trainer.py [--model smollm2-135m] [--rows 16] [--tokens 64] [--rounds 15] [--no-save]

The two take turns on the same batches: the plain step is made in a callback at the end of a step, and the Trainer's step is
what passes between two of these callbacks. The weights must stay equal to the bit.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import blockzo as bz
from benchmarks.harness import Spread, Table
from blockzo.finetune.models.loading import resolve
from blockzo.integrations.transformers import ZOConfig, ZOTrainer

WARM_UP = 2
BOUND = 1.03
METHODS = {"mezo": {"method": "mezo"}, "fzoo": {"method": "fzoo", "directions": 4}}


class Turns(TrainerCallback):
    """A plain step after each step of the Trainer, on its batch; seconds of both."""

    def __init__(self, plain: bz.ZO) -> None:
        self.plain, self.batch = plain, {}
        self.times: dict[str, list[float]] = {"trainer": [], "plain": []}
        self.begin = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        end = time.perf_counter()
        self.times["trainer"].append(end - self.begin)
        begin = time.perf_counter()
        self.plain.step(self.batch)
        self.begin = time.perf_counter()
        self.times["plain"].append(self.begin - begin)


class Told(ZOTrainer):
    """Hands its batch to the plain step."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        turns.batch = inputs
        return super().training_step(model, inputs, num_items_in_batch)


turns: Turns


def measure(
    table: Table,
    name: str,
    model: torch.nn.Module,
    rows: int,
    tokens: int,
    rounds: int,
    folder: Path,
    vocabulary: int = 1000,
) -> None:
    global turns
    other = copy.deepcopy(model)
    steps = rounds + WARM_UP
    ids = torch.randint(5, vocabulary, (steps * rows, tokens), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in ids]
    given = {
        "per_device_train_batch_size": rows,
        "max_steps": steps,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "constant",
    }
    quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = ZOConfig(str(folder), **METHODS[name], **given, **quiet)
    blocks = bz.Blocks(other, [])
    with bz.Journal.create(folder / "plain.bz", bz.digest(other), blocks.layout) as journal:
        turns = Turns(bz.ZO(other, None, args.estimator(), blocks, lr=1e-7, seed=args.seed, journal=journal))
        Told(model, args, train_dataset=data, callbacks=[turns]).train()
    if bz.digest(other) != bz.digest(model):
        raise RuntimeError("the Trainer's weights are not those of the plain loop; expected the same bits")
    found = {side: seconds[WARM_UP:] for side, seconds in turns.times.items()}
    ratios = [one / two for one, two in zip(found["trainer"], found["plain"], strict=True)]
    table.add(
        f"{name}, {rows} x {tokens} tokens", "Trainer step over plain step", Spread.of(ratios), "x", at_most=BOUND
    )
    table.add(f"{name}, {rows} x {tokens} tokens", "plain step", Spread.of(found["plain"]), "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model, or a folder of one")
    parser.add_argument("--only", nargs="*", default=["mezo"], choices=list(METHODS))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    source = resolve(given.model, None, print)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    table = Table("trainer")
    for name in given.only:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        with TemporaryDirectory() as folder:
            measure(table, name, model, given.rows, given.tokens, given.rounds, Path(folder))
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
