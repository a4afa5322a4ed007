"""What surrounds a kernel: float modes, forked children, environment variables, a missing extension."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from blockzo import _native
from blockzo.noise import Noise
from blockzo.ops.backends import cpu, reference
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from tests.cpu.cases import same_bits, threads, weights

MOVE = (
    "import torch, blockzo as bz; w = torch.zeros(300); bz.perturb_({'w': w}, bz.Noise(1), 1.0); print(w.sum().item())"
)


@pytest.mark.parametrize("count", [1, 2])
def test_the_float_mode_of_the_caller_does_not_matter(isa: str, count: int) -> None:
    step = make_step(Noise(3, "gaussian"), [0], [1e-39])
    source = torch.full((200_000,), 1e-39)
    want, found = torch.empty_like(source), torch.empty_like(source)
    reference.perturbed_copy(want, source, 0, step, 5)
    flushes = torch.set_flush_denormal(True)
    try:
        with threads(count):
            cpu.perturbed_copy(found, source, 0, step, 5)
        product = torch.tensor([1e-39]) * torch.tensor([0.5])
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(found, want) and bool((want != 0).any())
    # and the mode is as it was
    assert bool((product == 0).all()) == flushes


def test_a_forked_child_works_alone() -> None:
    """A data loader's child has none of the parent's threads; it must neither hang nor give other bits."""
    step = make_step(Noise(3, "gaussian"), [0], [0.5])
    source = weights(300_000, torch.float32)
    want, out = torch.empty_like(source), torch.empty_like(source).share_memory_()
    with threads(2):
        cpu.perturbed_copy(want, source, 0, step, 5)
        child = os.fork()
        if child == 0:
            cpu.perturbed_copy(out, source, 0, step, 5)
            os._exit(0)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0 and same_bits(out, want)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BLOCKZO_")}
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", _native.available())
def test_blockzo_isa_forces_one(name: str) -> None:
    done = run(f"{MOVE}; from blockzo import _native; print(_native.chosen())", BLOCKZO_ISA=name)
    assert done.returncode == 0, done.stderr
    total, chosen = done.stdout.split()
    assert chosen == name and float(total) == float(Noise(1).sample("w", 300).sum())


@pytest.mark.parametrize("name", ["sse9", "AVX2", "neon" if "neon" not in _native.available() else "avx2"])
def test_blockzo_isa_that_cannot_be(name: str) -> None:
    before = _native.chosen()
    with pytest.raises(ValueError, match=f"'{name}' cannot be used here; expected one of"):
        _native.choose(name)
    assert _native.chosen() == before
    done = run(MOVE, BLOCKZO_ISA=name)
    assert done.returncode == 1 and f"BLOCKZO_ISA is '{name}'" in done.stderr and "baseline" in done.stderr


def test_the_reference_by_choice() -> None:
    done = run(f"{MOVE}; import sys; print('blockzo._native' in sys.modules)", BLOCKZO_BACKEND="reference")
    total, loaded = done.stdout.split()
    assert float(total) == float(Noise(1).sample("w", 300).sum()) and loaded == "False" and "Warning" not in done.stderr


def test_without_the_extension() -> None:
    hidden = f"import sys; sys.modules['blockzo._native'] = None; {MOVE}"
    done = run(f"{hidden}; bz.perturb_({{'w': w}}, bz.Noise(1), 1.0)")
    assert done.returncode == 0 and float(done.stdout) == float(Noise(1).sample("w", 300).sum())
    assert done.stderr.count("RuntimeWarning") == 1 and "C++ compiler" in done.stderr
    required = run(hidden, BLOCKZO_REQUIRE_NATIVE="1")
    assert required.returncode == 1 and "ImportError" in required.stderr and "BLOCKZO_REQUIRE_NATIVE" in required.stderr


def test_versions_and_lists() -> None:
    empty: list[Target] = []
    step = make_step(Noise(1), [0], [1.0])
    cpu.perturb_(empty, step)
    cpu.replay_([Target("w", 1, torch.ones(3))], [])
    assert cpu.project(empty, step) == [0.0]
    w = torch.ones(3)
    before = w._version
    cpu.perturb_([Target("w", 1, w)], step)
    assert w._version > before
