"""A small run of a ZOTrainer, for tests in this process and in ones that are killed or talk to each other."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

import blockzo as bz
from blockzo.integrations.transformers import ZOConfig, ZOTrainer
from tests.core import zoo

ROWS = 24


def rows(count: int = ROWS) -> list[dict[str, torch.Tensor]]:
    whole = zoo.batch(count)
    # label tokens differ in number, so that a mean over tokens is not one over rows
    for row in range(count):
        whole["labels"][row, 3 + row % 6 :] = -100
    return [{name: tensor[row] for name, tensor in whole.items()} for row in range(count)]


def settings(folder: Path, **given: Any) -> ZOConfig:
    plain = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "eps": 1e-2,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return ZOConfig(str(folder), **{**plain, **given})


class Seen(ZOTrainer):
    """Keeps what its steps were made of."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.inputs = [*getattr(self, "inputs", []), dict(inputs)]
        return super().training_step(model, inputs, num_items_in_batch)


def trainer(folder: Path, model: nn.Module | None = None, callbacks: Any = None, kind: Any = Seen, **given: Any) -> Any:
    data = rows()
    model = model or zoo.make("llama")
    return kind(model, settings(folder, **given), train_dataset=data, eval_dataset=data[:4], callbacks=callbacks)


class Stop(TrainerCallback):
    """Ends the process, or the run, after a step."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def killed(folder: str) -> None:
    """A run that is killed one step after a checkpoint."""
    trainer(Path(folder), callbacks=[Stop(5, kill=True)], method="spzo", blocks="0.5", weight_decay=0.1).train()


def rank(folder: str, number: str, ranks: str, port: str) -> None:
    """One of several processes, as `accelerate launch` starts them; tells the digest of its weights and the losses."""
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run = trainer(Path(folder), method="fzoo", directions=2, per_device_train_batch_size=2, max_steps=4)
    run.train()
    assert type(run.model_wrapped) is type(run.model), "a model that is wrapped averages gradients"
    run.save_model(str(Path(folder, "saved")))
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    Path(folder, f"told{number}").write_text(f"{bz.digest(run.model)}\n{losses}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "rank": rank}[sys.argv[1]](*sys.argv[2:])
