"""A user's checkout of MeZO or DeComFL, imported where it lies and run in a process of its own; nothing of it is copied.

    python -m benchmarks.baselines.upstream NAME PATH MODEL ROWS TOKENS        takes a step a line of input, answers with seconds

Both were written for older libraries. What their modules import and this environment does not have, and a step does not need, is
stood in for while they are imported (`importing.py`); what a step does need is looked for first, and its lack is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.baselines.importing import imported
from benchmarks.baselines.sides import EPS, LR, SEED, SHARED
from benchmarks.shapes.models import SHAPES, batch, build, language_loss

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"mezo": "princeton-nlp/MeZO", "decomfl": "ZidongLiu/DeComFL"}
FILES = {
    "mezo": "large_models/trainer.py",
    "decomfl": "cezo_fl/gradient_estimators/random_gradient_estimator_splitted.py",
}
BESIDE = {"mezo": ("MeZO, blockzo", "MeZO, eager"), "decomfl": ("one-sided 5, blockzo", "DeComFL 5, eager")}
"""Ours, and the baseline of this repository."""
Step = Callable[[dict[str, torch.Tensor]], object]


def checked(given: str) -> str:
    """NAME=PATH of a checkout that holds what is run of it.

    Raises:
        argparse.ArgumentTypeError: it does not.
    """
    name, _, path = given.partition("=")
    if name not in NAMES or not path:
        raise argparse.ArgumentTypeError(f"{given!r} was given; expected NAME=PATH with NAME one of {', '.join(NAMES)}")
    if not (Path(path) / FILES[name]).is_file():
        raise argparse.ArgumentTypeError(
            f"{path} holds no {FILES[name]}; expected a checkout of {NAMES[name]} (git clone https://github.com/{NAMES[name]})"
        )
    return given


def needed(owner: Any, names: list[str], name: str) -> None:
    """Raises AttributeError where the checkout has not what a step calls."""
    lacking = [one for one in names if not callable(getattr(owner, one, None))]
    if lacking:
        raise AttributeError(
            f"{owner.__name__} of {FILES[name]} has no {', '.join(lacking)}; expected the functions of {NAMES[name]}: take its "
            "main branch"
        )


def mezo(path: Path, model: nn.Module) -> Step:
    """`OurTrainer.zo_step` and `zo_update`, on a trainer that holds what these two read and no more."""
    trainer = imported(path / "large_models", "trainer").OurTrainer
    needed(trainer, ["zo_step", "zo_update", "zo_forward", "zo_perturb_parameters"], "mezo")
    own = object.__new__(trainer)
    own.args = SimpleNamespace(
        zo_eps=EPS, weight_decay=0.0, non_diff=False, n_gpu=1, gradient_accumulation_steps=1, device=torch.device("cpu")
    )
    own._prepare_inputs = lambda inputs: inputs
    own.compute_loss_context_manager = contextlib.nullcontext
    own.compute_loss = language_loss
    own._get_learning_rate = lambda: LR
    own.lr_scheduler = SimpleNamespace(step=lambda: None)

    def step(data: dict[str, torch.Tensor]) -> None:
        own.zo_step(model, data)
        own.zo_update(model)

    return step


def decomfl(path: Path, model: nn.Module) -> Step:
    """A round of one local step as its client does it: estimate, move, move back, and the replay of the round before."""
    module = imported(path, FILES["decomfl"].removesuffix(".py").replace("/", "."))
    kind = module.RandomGradientEstimatorParamwise
    calls = ["_zo_grad_estimate_paramwise", "update_model_given_seed_and_grad", "revert_model_given_seed_and_grad"]
    needed(kind, calls, "decomfl")
    own = kind(model.parameters(), mu=EPS, num_pert=SHARED, grad_estimate_method="rge-forward", device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step(data: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            found = own._zo_grad_estimate_paramwise(data, None, lambda inputs, _: language_loss(model, inputs), SEED)
            own.update_model_given_seed_and_grad(optimizer, [SEED], [found])
            own.revert_model_given_seed_and_grad(optimizer, [SEED], [found])
            own.update_model_given_seed_and_grad(optimizer, [SEED], [found])

    return step


class Checkout:
    """The process of a checkout.

    Args:
        name, path: as `checked` let pass. model, rows, tokens: what it trains, the same as the sides beside it.

    Raises:
        RuntimeError: it could not be imported or run; the text has what it said last.
    """

    def __init__(self, name: str, path: Path, model: str, rows: int, tokens: int) -> None:
        git = ["git", "-C", str(path), "rev-parse", "--short", "HEAD"]
        told = subprocess.run(git, capture_output=True, text=True)
        self.commit = told.stdout.strip() if told.returncode == 0 else "an unknown commit"
        given = [name, str(path.resolve()), model, str(rows), str(tokens)]
        command = [sys.executable, "-m", "benchmarks.baselines.upstream", *given]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1
        )
        self._answer()

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def step(self) -> float:
        """CPU seconds of one."""
        assert self._process.stdin
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        kind, _, rest = line.partition(" ")
        if kind != "ok":
            self.__exit__()
            raise RuntimeError(f"the checkout did not take a step: {rest or 'its process ended'}")
        return rest


def main() -> None:
    name, path, model_name, rows, tokens = sys.argv[1:]
    out, sys.stdout = sys.stdout, sys.stderr  # the checkout may print
    torch.set_num_threads(1)
    shape = SHAPES[model_name]
    model, data = build(shape), batch(shape, int(rows), int(tokens))
    try:
        step = {"mezo": mezo, "decomfl": decomfl}[name](Path(path), model)
        print("ok", file=out, flush=True)
        for _ in sys.stdin:
            begin = time.process_time()
            step(data)
            print("ok", time.process_time() - begin, file=out, flush=True)
    except Exception as error:
        print("error", f"{type(error).__name__}: {' '.join(str(error).split())}", file=out, flush=True)


if __name__ == "__main__":
    main()
