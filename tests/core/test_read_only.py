"""Evaluating a loss writes no weight: the digest says so, and so does memory that cannot be written."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import blockzo as bz
from blockzo.optim.executor import PerturbedExecutor
from blockzo.perturb import parameters
from blockzo.perturb.groups import perturbed_losses
from tests import warm
from tests.core import zoo


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
@pytest.mark.filterwarnings("ignore:this model cannot be evaluated in groups")
def test_the_digest_stays(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", 128)
    model, batch = zoo.make(name).to(dtype), zoo.batch()
    before = bz.digest(model)
    losses = perturbed_losses(model, bz.Noise(1), [0, 0, 1], [0.1, -0.1, 0.1], lambda: model(**batch).loss, max_group=3)
    with bz.perturbed(model, bz.Noise(1), [0], [0.1]):
        alone = float(model(**batch).loss)
    blocks = bz.Blocks(model, [2])
    for size in (1, 4):
        PerturbedExecutor(blocks, bz.Noise(1), [0.1] * 2, size).run(bz.SPZO(1, 2).tree(2), lambda: model(**batch).loss)
    assert bz.digest(model) == before
    # something was moved: both signs differ
    assert losses[0] != losses[1]
    assert alone == pytest.approx(float(losses[0]), rel=0.05)
    bz.perturb_(model, bz.Noise(1), 0.1)
    assert bz.digest(model) != before  # a digest that could not change would say nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["ends where it is", "goes on"])
def test_a_loss_that_writes_weights_past_torch_is_refused(dtype: torch.dtype, again: bool) -> None:
    """Its watch sees torch's functions alone. An odd number of weights, behind an odd offset."""
    memory = torch.ones(8, dtype=dtype)
    model = nn.Linear(7, 1, bias=False)
    model.weight = nn.Parameter(memory[1:].view(1, 7))
    array = memory.view(torch.int16).numpy()

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if again:
            array[-1] += 1
        else:
            array[-1] = 0
        return model(batch).float().square().mean()

    zo = bz.ZO(model, loss, "mezo", lr=0.1)
    with pytest.raises(ValueError, match=r"writes parameter 'weight' .*past torch's functions.*load the weights again"):
        zo.step(torch.ones(2, 7, dtype=dtype))
    assert zo.step_number == 0


PROGRAM = """
import ctypes, mmap, sys
import torch
import warnings
import blockzo as bz
warnings.simplefilter("ignore")
from blockzo.perturb.groups import perturbed_losses
from blockzo.perturb import parameters
from tests.core import zoo

name, dtype, act = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
parameters.SMALL = 128
model, batch = zoo.make(name).to(dtype), zoo.batch()
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
held = []
for parameter in model.parameters():
    size = max(1, parameter.numel() * parameter.element_size())
    memory = mmap.mmap(-1, size)
    held.append(memory)
    inside = torch.frombuffer(memory, dtype=dtype, count=parameter.numel()).view(parameter.shape)
    inside.copy_(parameter.detach())
    parameter.data = inside
    assert parameter.data_ptr() % mmap.PAGESIZE == 0
    assert libc.mprotect(parameter.data_ptr(), size, mmap.PROT_READ) == 0, ctypes.get_errno()
before = bz.digest(model)
if act == "write":
    with torch.no_grad():
        next(model.parameters()).add_(1)
loss = lambda: model(**batch).loss
with bz.perturbed(model, bz.Noise(1), [0], [0.1]):
    loss()
perturbed_losses(model, bz.Noise(1), [0, 1], [0.1, 0.1], loss, max_group=2)
for method, cut in ((bz.MeZO(), []), (bz.SPZO(1, 2), [2]), (bz.SPZO(1, 2, "decoupled"), [2])):
    for distribution in bz.noise.DISTRIBUTIONS:
        zo = bz.ZO(model, method=method, blocks=bz.Blocks(model, cut), distribution=distribution)
        zo.loss_checks.reads_at = None  # that check writes weights, and puts them back
        zo.estimate(batch)
assert bz.digest(model) == before
print("unchanged")
"""


def run_protected(name: str, dtype: str, act: str) -> subprocess.CompletedProcess[str]:
    return warm.run(["-c", PROGRAM, name, dtype, act])


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by ctypes")
@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", "float32"), ("opt", "bfloat16"), ("gpt2", "float32"), ("bloom", "float16")]
)
def test_weights_in_memory_that_cannot_be_written(name: str, dtype: str) -> None:
    done = run_protected(name, dtype, "evaluate")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "unchanged"


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by ctypes")
def test_a_write_to_that_memory_kills_the_process() -> None:
    assert run_protected("llama", "float32", "write").returncode == -signal.SIGSEGV
