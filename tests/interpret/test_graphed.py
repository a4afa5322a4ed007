"""`GraphedStep` by the GPU's kernels, interpreted: the steps of `ZO.step` by the same kernels, and nothing in between that a
graph cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import blockzo as bz
from blockzo.ops import library_packed
from blockzo.ops.backends import choice
from blockzo.ops.backends.gpu import kernels, products, tables
from blockzo.ops.packed import PackedStep, packed
from blockzo.ops.steps import make_step
from blockzo.optim.graphed import as_if_captured
from blockzo.perturb import moves, parameters
from tests.core import zoo
from tests.cpu.cases import DISTRIBUTIONS

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh", "_unique2", "masked_select")
"""Operations that read from the device, or copy to it from the host."""


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 128)
        self.norm = nn.LayerNorm(128)
        self.inner = nn.Linear(128, 128)
        self.head = nn.Linear(128, 4, bias=False)
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.embed(ids))
        return F.cross_entropy(self.head(torch.relu(self.inner(hidden))).float().flatten(0, 1), ids.flatten() % 4)


@pytest.fixture(autouse=True)
def served_by_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "for_tensor", lambda tensor: kernels)
    monkeypatch.setattr(parameters, "SMALL", 600)


def make(dtype: torch.dtype, distribution: str, method: Any, moved: str = "auto") -> bz.ZO:
    settings: dict[str, Any] = {"distribution": distribution, "method": method, "lr": 1e-2, "weight_decay": 0.1}
    settings["moved"] = moved
    return bz.ZO(Model(dtype), lambda m, ids: m(ids), max_group=1, seed=7, **settings)


@pytest.mark.parametrize(
    ("dtype", "distribution"),
    [
        pytest.param(dtype, distribution, marks=[] if first is (distribution == "gaussian") else pytest.mark.slow)
        for dtype, first in ((torch.float32, True), (torch.float16, False))
        for distribution in DISTRIBUTIONS
    ],
    ids=str,
)
def test_equals_step(dtype: torch.dtype, distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain: Callable[..., Tensor] = products.products
    monkeypatch.setattr(kernels, "products", lambda *arguments: calls.append(1) or plain(*arguments))
    eager, other = (make(dtype, distribution, bz.SPSA(2)) for _ in range(2))
    graphed = bz.GraphedStep(other)
    for step in range(2):
        ids = torch.tensor([[1, 5, 7 + step], [3, 39, 0]])
        assert graphed.step(ids) == eager.step(ids)
        assert bz.digest(other.model) == bz.digest(eager.model)
    # 16-bit weights do not go by panels
    assert bool(calls) == (dtype == torch.float16)


@pytest.mark.parametrize("moved", ["float32", "rounded"])
def test_the_choice_of_rounding(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain: Callable[..., Tensor] = products.products
    monkeypatch.setattr(kernels, "products", lambda *arguments: calls.append(1) or plain(*arguments))
    eager, other = (make(torch.float16, "rademacher", bz.MeZO(), moved) for _ in range(2))
    ids = torch.tensor([[1, 5, 7], [3, 39, 0]])
    # checks of the loss are no part of the step
    eager.look_at(ids)
    other.look_at(ids)
    calls.clear()
    assert bz.GraphedStep(other).step(ids) == eager.step(ids)
    # two layers, both signs, in either
    assert len(calls) == (8 if moved == "float32" else 0)


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        if func.namespace != "blockzo":
            return func(*args, **(kwargs or {}))
        with self:  # look inside, too
            return library_packed.IMPLEMENTATIONS[f"{func.overloadpacket.__name__}.packed"](*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_nothing_waits_for_the_device(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations of a step on its second run, with the launches of kernels left out: the interpreter is no part of it."""
    graphed = bz.GraphedStep(make(dtype, "rademacher", bz.MeZO()))
    graphed.step(torch.tensor([[1, 5, 7], [3, 39, 0]]))
    # what a CUDA tensor is not asked on the host
    monkeypatch.setattr(moves, "checked_rows", lambda weight, rows: rows.reshape(-1))
    for module, name in ((kernels, "move_kernel"), (kernels, "rows_kernel"), (products, "products_kernel")):
        monkeypatch.setattr(module, name, _Ignored())
    with Watch() as reading:
        make_packed().read()
    assert reading.seen & set(WAITS)  # the watch sees what it is to see
    with Watch() as watch, tables.held_tables() as kept:
        graphed._run()
    assert {"perturbed_linear", "perturbed_rows", "move_"} <= watch.seen
    assert not watch.seen & set(WAITS), watch.seen & set(WAITS)
    assert len(kept) > 8


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bert", "modernbert", "gemma2"])
def test_an_attention_mask_is_not_read_under_capture(name: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, kernel in ((kernels, "move_kernel"), (kernels, "rows_kernel"), (products, "products_kernel")):
        monkeypatch.setattr(module, kernel, _Ignored())
    monkeypatch.setattr(moves, "checked_rows", lambda weight, rows: rows.reshape(-1))
    ids = torch.randint(3, 90, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0 if padded else 1
    graphed = bz.GraphedStep(bz.ZO(zoo.make(name), lambda m, b: m(**b).loss, method=bz.MeZO(), max_group=1))
    graphed._take({"input_ids": ids, "labels": ids, "attention_mask": mask})
    graphed._write(0, 0.0, 1.0)
    with as_if_captured():
        graphed._run()
        with Watch() as watch:
            graphed._run()
    assert not watch.seen & set(WAITS), watch.seen & set(WAITS)
    if name == "llama":
        # what the stand-in is for
        with Watch() as watch:
            graphed._run()
        assert watch.seen & set(WAITS)


def make_packed() -> PackedStep:
    return packed(make_step(bz.Noise(1), [0], [1.0]), torch.device("cpu"))


class _Ignored:
    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: None
