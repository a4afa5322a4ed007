"""Peak memory, each figure from a process of its own.

python -m benchmarks.shapes.peaks MODEL WHAT ROWS TOKENS LOSS [LAYERS]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.baselines.backprop import Backprop
from benchmarks.shapes.formulas import METHODS, STATES
from benchmarks.shapes.methods import LR, optimiser
from benchmarks.shapes.models import LOSSES, SHAPES, batch, build, with_layers

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2


def measured(model: str, what: str, rows: int, tokens: int, loss: str, layers: int | None = None) -> dict[str, int]:
    """Of another process.

    Args:
        what: "inference", an optimiser of first order, or the case of a method.

    Returns:
        "peak": bytes resident at most while it ran, the model in it; "flops": of a step, as the step counted (0: nothing did).
    """
    given = [model, what, str(rows), str(tokens), loss, *([] if layers is None else [str(layers)])]
    command = [sys.executable, "-m", "benchmarks.shapes.peaks", *given]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    name, what, rows, tokens, loss_name, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    shape = SHAPES[name] if not rest else with_layers(SHAPES[name], int(rest[0]))
    model, data, loss = build(shape), batch(shape, int(rows), int(tokens)), LOSSES[loss_name]
    # what building the model took at its worst must not hide what running it takes
    Path("/proc/self/clear_refs").write_text("5")
    with torch.no_grad():
        for _ in range(STEPS if what == "inference" else 1):
            loss(model, data)
    flops = 0
    if what in STATES:
        backprop = Backprop(model, loss, LR, optimizer=what)
        for _ in range(STEPS):
            backprop.step(data)
    elif what != "inference":
        zo = optimiser(model, loss, METHODS[what])
        for _ in range(STEPS):
            flops = zo.step(data).flops
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10
    print(json.dumps({"peak": peak, "flops": flops}))


if __name__ == "__main__":
    main()
