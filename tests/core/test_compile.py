"""torch.compile(fullgraph=True) of a whole perturbed model: the uncompiled losses, and nothing compiled anew for another seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.perturb import PerturbedForward, parameters
from tests.core import zoo
from tests.core.test_rounded_moves import FORMS, Cancels, moved_by

# compiles whole steps
pytestmark = pytest.mark.heavy

CASES = ((bz.Noise(3), 0, 0.1), (bz.Noise(2**64 - 1), 5, -0.1), (bz.Noise(2**63), 2**32 - 2, 0.05))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # so that large and small parameters are in these models
    monkeypatch.setattr(parameters, "SMALL", 128)
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def compiled(backend: str) -> Callable[[nn.Module, dict[str, Tensor], PerturbedForward], Tensor]:
    def loss(model: nn.Module, batch: dict[str, Tensor], moved: PerturbedForward) -> Tensor:
        with moved:
            logits: Tensor = model(**batch).logits
            return F.cross_entropy(logits.float().flatten(0, 1), batch["input_ids"].flatten())

    return torch.compile(loss, fullgraph=True, backend=backend)


def check(name: str, backend: str, dtype: torch.dtype = torch.float32, tolerance: float = 1e-5) -> None:
    model, batch = zoo.make(name).to(dtype), zoo.batch()
    batch.pop("labels", None)
    before, loss = bz.digest(model), compiled(backend)
    for noise, direction, scale in CASES:
        found = float(loss(model, batch, bz.perturbed(model, noise, [direction], [scale])))
        with bz.perturbed(model, noise, [direction], [scale]):
            logits = model(**batch).logits
            expected = float(F.cross_entropy(logits.float().flatten(0, 1), batch["input_ids"].flatten()))
        unmoved = float(F.cross_entropy(model(**batch).logits.float().flatten(0, 1), batch["input_ids"].flatten()))
        assert found == pytest.approx(expected, rel=tolerance)
        assert abs(unmoved - expected) > 20 * tolerance * abs(expected)
    assert bz.digest(model) == before


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_aot_eager(name: str) -> None:
    check(name, "aot_eager")


def test_bfloat16() -> None:
    check("llama", "aot_eager", torch.bfloat16, 1e-3)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_inductor(name: str) -> None:
    check(name, "inductor")


class Views(nn.Module):
    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.randn(24, 16))
        self.turned = nn.Parameter(torch.randn(16, 24).t())
        self.bias = nn.Parameter(torch.randn(24))
        if hidden:
            self.query = self.fused.detach()[:8]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.fused.chunk(3)
        y = F.linear(x, q) + x @ k.t() + F.linear(x, self.fused[16:]) + F.linear(x, self.fused, self.bias)[:, :8]
        return torch.cat([y, F.linear(x, self.turned, self.bias), F.embedding(torch.tensor([3, 1, 3]), self.fused)], 1)


def enter(model: nn.Module, x: Tensor, moved: PerturbedForward) -> Tensor:
    with moved:
        out: Tensor = model(x)
        return out


def test_views_strides_and_lookups() -> None:
    torch.manual_seed(0)
    model, x, loss = Views(False), torch.randn(3, 16), torch.compile(enter, fullgraph=True, backend="aot_eager")
    for noise, direction, scale in CASES:
        with bz.perturbed(model, noise, [direction], [scale]):
            expected = model(x)
        found = loss(model, x, bz.perturbed(model, noise, [direction], [scale]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(Exception) as error:
        call()
    assert message in str(error.value)


def test_what_would_be_wrong_is_refused() -> None:
    model, x, loss = Views(True), torch.randn(3, 16), torch.compile(enter, fullgraph=True, backend="aot_eager")
    refused("'query' of the model is a view of a parameter", lambda: loss(model, x, bz.perturbed(model, bz.Noise(1))))
    plain = torch.compile(lambda model, x: model(x), fullgraph=True, backend="aot_eager")
    with bz.perturbed(Views(False), bz.Noise(1)) as mode:
        model = Views(False)
    with bz.perturbed(model, bz.Noise(1)):
        refused("a compiled function was called inside a perturbed forward", lambda: plain(model, x))
    torch._dynamo.reset()
    with torch.enable_grad():
        refused("under torch.no_grad()", lambda: loss(model, x, bz.perturbed(model, bz.Noise(1))))
    inside = torch.compile(lambda model: bz.perturbed(model, bz.Noise(1)), fullgraph=True, backend="aot_eager")
    refused("call it before and hand over what it returns", lambda: inside(model))
    assert not mode.entered


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.mul_(2)


def test_a_model_that_writes_a_parameter_is_refused() -> None:
    model = Writes()
    before = bz.digest(model)
    loss = torch.compile(enter, fullgraph=True, backend="aot_eager")
    refused("which would write the weight", lambda: loss(model, torch.randn(4, 4), bz.perturbed(model, bz.Noise(1))))
    assert bz.digest(model) == before


@pytest.mark.parametrize("moved", ["float32", "rounded"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("small", [0, pytest.param(1 << 14, marks=pytest.mark.slow)], ids=["large", "small"])
def test_moves_are_rounded_as_told(form: str, small: int, moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or refused, where the compiler would take a view of a rounded copy."""
    monkeypatch.setattr(parameters, "SMALL", small)
    model, noise, scale = Cancels(form, 48, torch.bfloat16), bz.Noise(5), 1.5 * 2.0**-9

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(model: nn.Module, mode: PerturbedForward) -> Tensor:
        with mode:
            return model().double().square().mean()

    def found() -> float:
        return float(loss(model, bz.perturbed(model, noise, [3], [scale], moved=moved)))

    if moved == "float32" and form in ("view", "columns", "factors", "both"):
        refused("which a compiled forward takes of a rounded copy", found)
        return
    want = moved_by(
        model, lambda held: bz.perturb_(held, noise, scale, 3), torch.bfloat16 if moved == "rounded" else None
    )
    assert found() == pytest.approx(want, rel=0.03)
