"""The examples of docs/backend.md run as they stand, each after the lines that they share, and are ten lines at most."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import blockzo as bz
from tests.docs.commands import ROOT
from tests.integrations.test_vllm import whole_model, worker

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backend.md").read_text(encoding="utf-8"), re.DOTALL)
SHARED, EXAMPLES = BLOCKS[0], {block.strip().splitlines()[0]: block for block in BLOCKS[1:]}
IN_PLACE, SCALES, OPTIM, ES, VLLM, ROUNDS, MEMORY = EXAMPLES


def run(example: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(SHARED, names)
    names["before"] = float(names["loss"]())
    exec(EXAMPLES[example], names)
    return names


@pytest.mark.parametrize("example", list(EXAMPLES))
def test_it_is_ten_lines(example: str) -> None:
    assert len([line for line in EXAMPLES[example].splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("example", [IN_PLACE, SCALES, OPTIM, ES])
def test_a_loop_gains(example: str) -> None:
    names = run(example)
    assert float(names["loss"]()) < names["before"]


def test_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(ROUNDS)
    assert capsys.readouterr().out.strip() == bz.digest(names["model"])


def test_noise_in_memory() -> None:
    names = run(MEMORY)
    assert torch.equal(names["z"], bz.Noise(7, "gaussian").sample("0.weight", (32, 8), 3))
    weight = names["model"][0].weight.detach().double()
    assert float(names["slopes"][3]) == pytest.approx(float((weight * names["z"].double()).sum()), rel=1e-9)


def test_vllm_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whole_model(2, torch.bfloat16)
    extension = worker(whole, 2)
    texts = iter("abc" * k for k in range(30))

    class LLM:
        def __init__(self, model: str, worker_extension_cls: str) -> None:
            assert worker_extension_cls == f"{type(extension).__module__}.{type(extension).__qualname__}"
            self.collective_rpc = lambda name, args=(): [getattr(extension, name)(*args)]
            self.reset_prefix_cache = lambda: None

        def generate(self, prompt: str) -> list[Any]:
            return [SimpleNamespace(outputs=[SimpleNamespace(text=next(texts))])]

    module = ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    run(VLLM)
    numbers = [-1e-4 * (3 * k - 43.5) for k in range(30)]
    bz.update_(whole, [bz.Noise(k, "gaussian") for k in range(30)], numbers)
    assert extension.zo_digest() == bz.digest(whole)
