"""`--upstream`: a checkout is imported where it lies, beside ours, or refused in words. These checkouts are made for the test."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks.baselines import importing, upstream
from benchmarks.baselines.upstream import Checkout, checked
from benchmarks.shapes.models import SHAPES, batch, build, language_loss

MEZO = """
import torch
from transformers.deepspeed import deepspeed_init
from transformers.trainer_utils import get_last_checkpoint, is_gone_available, name_that_is_gone
if is_gone_available():
    raise KeyError("gone")
from a_library_that_is_not_here.linear import Regression
from metrics import f1
from transformers import Trainer

class OurTrainer(Trainer):
    def zo_perturb_parameters(self, scaling_factor):
        torch.manual_seed(self.seed)
        for p in self.held:
            p.data = p.data + scaling_factor * self.args.zo_eps * torch.randn_like(p)
    def zo_forward(self, model, inputs):
        with torch.inference_mode(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs))
    def zo_step(self, model, inputs):
        self.seed, self.held = 3, list(model.parameters())
        self.zo_perturb_parameters(scaling_factor=1)
        loss = self.zo_forward(model, inputs)
        print("printing is allowed", float(loss))
    def zo_update(self, model):
        self._get_learning_rate()
        self.lr_scheduler.step()
"""
DECOMFL = """
import torch
from cezo_fl.estimate import GONE

class RandomGradientEstimatorParamwise:
    calls, scalars = [], []
    def __init__(self, parameters, mu, num_pert, grad_estimate_method, device):
        assert (num_pert, grad_estimate_method) == (5, "rge-forward")
    def _zo_grad_estimate_paramwise(self, inputs, labels, loss_fn, seed):
        self.calls.append("estimate")
        self.scalars.append(loss_fn(inputs, labels))
        return self.scalars[-1]
    def update_model_given_seed_and_grad(self, optimizer, seeds, scalars):
        assert scalars[0] is self.scalars[-1]
        self.calls.append("move")
    def revert_model_given_seed_and_grad(self, optimizer, seeds, scalars):
        self.calls.append("back")
"""


def made(folder: Path, name: str, text: str) -> Path:
    file = folder / upstream.FILES[name]
    file.parent.mkdir(parents=True)
    file.write_text(text)
    if name == "mezo":
        (file.parent / "metrics.py").write_text("f1 = 1")
    else:
        (folder / "cezo_fl" / "estimate.py").write_text("GONE = 1")
    return folder


def test_a_step_of_mezo_in_a_process_of_its_own(tmp_path: Path) -> None:
    before = set(sys.modules)
    with Checkout("mezo", made(tmp_path, "mezo", MEZO), "tiny", 2, 8) as checkout:
        assert checkout.step() > 0 and checkout.step() > 0
        assert checkout.commit == "an unknown commit"
    assert not {"trainer", "metrics"} & (set(sys.modules) - before)


def test_a_round_of_decomfl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    shape = SHAPES["tiny"]
    model, data = build(shape), batch(shape, 2, 8)
    step = upstream.decomfl(made(tmp_path, "decomfl", DECOMFL), model)
    step(data)
    kind = sys.modules[
        "cezo_fl.gradient_estimators.random_gradient_estimator_splitted"
    ].RandomGradientEstimatorParamwise
    found = kind.scalars[-1].item()
    assert found == pytest.approx(float(language_loss(model, data)), rel=1e-5)
    assert kind.calls == ["estimate", "move", "back", "move"]
    for name in [name for name in sys.modules if name.startswith("cezo_fl")]:
        del sys.modules[name]


def test_a_checkout_that_lacks_a_function_is_told() -> None:
    class OurTrainer:
        def zo_step(self) -> None: ...

    with pytest.raises(AttributeError, match="OurTrainer of large_models/trainer.py has no zo_update; expected"):
        upstream.needed(OurTrainer, ["zo_step", "zo_update"], "mezo")


def test_a_process_that_cannot_step_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the checkout did not take a step"):
        Checkout("mezo", tmp_path, "no such model", 2, 8)


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    for given, told in (
        ("lozo=/there", "expected NAME=PATH with NAME one of mezo, decomfl"),
        ("mezo", "expected NAME=PATH"),
        (f"mezo={tmp_path}", "holds no large_models/trainer.py; expected a checkout of princeton-nlp/MeZO"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            checked(given)
    made(tmp_path, "mezo", MEZO)
    assert checked(f"mezo={tmp_path}") == f"mezo={tmp_path}"


def test_what_the_checkout_lacks_of_its_own_is_not_stood_in_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_part.py").write_text("")
    (tmp_path / "own_whole.py").write_text("from own_part import lacking")
    with pytest.raises(ImportError, match="lacking"):
        importing.imported(tmp_path, "own_whole")
