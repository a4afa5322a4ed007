"""`blockzo demo`: `blockzo finetune` with nothing to prepare, and settings that were chosen for it (docs/results.md)."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from typer.core import TyperGroup

JOB = ["--model", "smollm2-135m", "--task", "trec"]
OUTPUT = ["--output", "runs/demo"]
METHOD = ["--method", "tree", "--one-sided", "--split", "head", "--levels", "0,64"]
METHOD += ["--trainable", "model.norm.weight", "--lr", "1", "--eps", "1e-2", "--schedule", "linear", "--batch", "8"]
LENGTH = ["--steps", "200", "--eval-every", "25", "--eval-rows", "100"]


def arguments(given: Sequence[str]) -> list[str]:
    """What `blockzo finetune` is told: what was given wins, and another method comes without the settings of this one."""
    if "--resume" in given:
        return [*OUTPUT, *given]
    another = any(word == "--method" or word.startswith("--method=") for word in given)
    return [*JOB, *OUTPUT, *([] if another else METHOD), *LENGTH, *given]


def demo(context: typer.Context) -> None:
    """Teach SmolLM2-135M to sort questions by forward passes alone: some minutes on two cores, into runs/demo.

    Model and rows (TREC) come by themselves. The layers stay as they are and run once a batch; the last norm is moved along
    64 directions on what they gave. All options of blockzo finetune may follow and win: blockzo demo --seed 1 -o runs/second
    """
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, TyperGroup)
    command = group.commands["finetune"]
    with command.make_context("demo", arguments(context.args), parent=context.parent) as inner:
        command.invoke(inner)
