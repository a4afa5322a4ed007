"""The perturbed forward equals the forward of a moved copy, and writes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import blockzo as bz
from blockzo import ops
from blockzo.ops.backends import choice
from blockzo.perturb import functions, mode, parameters
from tests.core import zoo

NOISE = bz.Noise(11, "gaussian")


@pytest.fixture(params=[128, 1 << 14], ids=["large", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The models here are tiny: their matrices are treated once as the large ones they stand for, once as the small they are."""
    monkeypatch.setattr(parameters, "SMALL", request.param)
    return request.param


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", 128)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the large parameters of which a moved copy was made."""
    found: list[str] = []
    plain = parameters.Parameter.copies
    monkeypatch.setattr(
        parameters.Parameter, "copies", lambda self, move: (found.append(self.name), plain(self, move))[1]
    )
    return found


@pytest.fixture(autouse=True)
def told_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mode, "_told", set())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the model hands parameter")
        yield


def moved_copy(model: nn.Module, scale: float, direction: int = 0) -> nn.Module:
    other = copy.deepcopy(model)
    bz.perturb_(other, NOISE, scale, direction)
    return other


def assert_moved(found: Tensor, expected: Tensor, plain: Tensor, tolerance: float) -> None:
    """Equal but for rounding, which is small beside what the move does."""
    error, effect = (float((x - expected).abs().max()) for x in (found, plain))
    assert error <= tolerance * float(expected.abs().max())
    assert effect > 20 * error


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
def test_equals_a_moved_copy(name: str, dtype: torch.dtype, tolerance: float, sizes: int, copied: list[str]) -> None:
    model, batch = zoo.make(name).to(dtype), zoo.batch()
    before = bz.digest(model)
    with torch.no_grad():
        plain, expected = model(**batch).logits, moved_copy(model, 0.1, 3)(**batch).logits
        with bz.perturbed(model, NOISE, [3], [0.1]):
            found = model(**batch).logits
    assert_moved(found, expected, plain, tolerance)
    assert bz.digest(model) == before
    # all architectures are taught: nothing but a table with fewer rows than lookups is copied
    assert all("embed" in name or "wpe" in name for name in copied), copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("panel", [1, 640, 1 << 20])
def test_row_panels(panel: int, dtype: torch.dtype, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 keeps its weights transposed; they are multiplied in panels of their rows."""
    monkeypatch.setattr(functions, "PANEL_BYTES", panel)
    model, batch = zoo.make("gpt2").to(dtype), zoo.batch()
    with torch.no_grad():
        plain, expected = model(**batch).logits, moved_copy(model, 0.1)(**batch).logits
        with bz.perturbed(model, NOISE, [0], [0.1]):
            found = model(**batch).logits
    assert_moved(found, expected, plain, 1e-5 if dtype == torch.float32 else 0.03)


def test_frozen_parameters_stay_where_they_are() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    with torch.no_grad(), bz.perturbed(model, NOISE, [0], [0.1]):
        found = model(**batch).logits
    with torch.no_grad():
        assert_moved(found, moved_copy(model, 0.1)(**batch).logits, model(**batch).logits, 1e-5)


class Uses(nn.Module):
    """Every way of using a parameter that the special cases must not get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(6))
        self.table = nn.Parameter(torch.randn(5, 4))
        self.fused = nn.Parameter(torch.randn(12, 4))
        self.kernel = nn.Parameter(torch.randn(3, 4, 2))
        self.experts = nn.Parameter(torch.randn(3, 6, 4))
        self.square = nn.Parameter(torch.randn(4, 4))
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.query = self.fused.detach()[4:8]  # a view made long before the forward

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        ids = torch.tensor([[0, 4], [1, 1]])
        total = torch.zeros(3, 6)
        total += self.bias
        return [
            F.linear(x, self.weight, self.bias),
            F.linear(x[0], self.weight, self.bias),
            F.linear(x.view(3, 1, 1, 4), self.weight),
            F.linear(x[:0], self.weight, self.bias),
            F.linear(x, self.weight[1:3]),
            F.linear(x, self.weight, self.bias * 2),
            F.linear(x[:, 1:3], self.weight[:, 1:3]),
            F.linear(x, self.weight[torch.tensor([5, -1, 0])], self.bias[[0, 1, 2]]),
            F.linear(x, self.square.t()),
            F.linear(x, self.turned, self.bias),
            F.linear(x, self.experts[1]),
            F.linear(x, self.fused.view(3, 4, 4)[2]),
            F.linear(x, self.weight.detach().contiguous().to(x.dtype)),
            x @ self.weight.t() + self.bias,
            x @ self.weight.mT,
            x @ self.square,
            x @ self.square[:, 1:3],
            x[0] @ self.square,
            self.square @ x.t(),
            self.square @ x[0],
            torch.addmm(self.bias, x, self.weight.T),
            torch.addmm(self.bias, x, self.weight.T, beta=2),
            torch.addmm(self.bias.expand(3, 6), x, self.weight.T),
            x.new_ones(3, 6).addmm(x, self.weight.T),
            torch.bmm(x.expand(3, 3, 4), self.experts.transpose(1, 2)),
            F.embedding(ids, self.table),
            F.embedding(ids, self.table, padding_idx=0),
            F.embedding(ids, self.fused[3:8]),
            F.embedding(ids.repeat(5, 1), self.table),
            self.table.index_select(0, ids.flatten()),
            self.table.index_select(1, ids[0, :1]),
            self.table[ids],
            self.table[ids - 3],
            self.table[1] * 2,
            self.table[ids, 0],
            self.table[torch.tensor([True, False, True, False, True])],
            torch.cat([self.weight, self.table]),
            torch.stack([self.bias, self.bias * 2]),
            F.layer_norm(x, (4,), self.table[0], self.table[1]),
            x @ self.query.t(),
            torch.einsum("bi,oi->bo", x, self.weight),
            F.conv1d(x.unsqueeze(-1).expand(-1, -1, 5), self.kernel),
            self.weight.data.sum(),
            torch.chunk(self.fused, 3)[1] @ x.t(),
            torch.cat([F.linear(x, part) for part in self.fused.split([4, 6, 2])], dim=1),
            self.fused.reshape(-1)[3:17] * 2,
            self.fused.as_strided((3, 2), (8, 1), 5).exp(),
            self.fused.clone().mul_(2),
            x.new_zeros(self.weight.shape) + self.weight.norm(),
            total,
        ]


@pytest.mark.parametrize("small", [0, 5, 1 << 14])
def test_every_use_of_a_parameter(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", small)
    torch.manual_seed(0)
    model, x = Uses(), torch.randn(3, 4)
    other = copy.deepcopy(model)
    other.query = other.fused.detach()[4:8]
    bz.perturb_(other, NOISE, 0.5)
    with bz.perturbed(model, NOISE, [0], [0.5]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(x)
    with torch.no_grad():
        for number, (a, b) in enumerate(zip(found, other(x), strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=f"use {number}")


class Fused(nn.Module):
    """Large weights seen through views, as fused projections and stacked experts are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(48, 16))
        self.experts = nn.Parameter(torch.randn(4, 16, 16))
        self.transposed = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv.chunk(3)
        x = F.linear(x, q) + x @ k.T + F.linear(x, self.qkv[32:48]) + x @ v.transpose(0, 1)
        for expert in range(4):
            x = F.linear(x, self.experts[expert])
        return torch.addmm(x.new_zeros(32), x, self.transposed)


def test_views_of_a_weight_are_not_copied(large: None, copied: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Fused(), torch.randn(5, 16)
    with torch.no_grad():
        plain, expected = model(x), moved_copy(model, 0.01)(x)
    with bz.perturbed(model, NOISE, [0], [0.01]):
        found = model(x)
    assert_moved(found, expected, plain, 1e-5)
    assert not copied


def test_what_has_no_perturbed_form_is_said_once(large: None) -> None:
    model, x = nn.Bilinear(16, 16, 4), torch.randn(3, 16)
    expected = moved_copy(model, 0.1)(x, x)
    with bz.perturbed(model, NOISE, [0], [0.1]):
        with pytest.warns(UserWarning, match="parameter 'weight' to 'bilinear', which has no perturbed form"):
            found = model(x, x)
        model(x, x)  # a warning would be an error here
    torch.testing.assert_close(found, expected)


def test_embeddings_are_made_only_where_they_are_read(
    large: None, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    plain = ops.perturbed_rows
    monkeypatch.setattr(
        ops, "perturbed_rows", lambda w, rows, *rest: (made.append(rows.numel()), plain(w, rows, *rest))[1]
    )
    model = nn.Embedding(1000, 8)
    with bz.perturbed(model, NOISE, [0], [0.1]):
        found = model(torch.tensor([[3, 999], [3, 0]]))
    assert made == [4]
    assert not copied
    assert torch.equal(found, moved_copy(model, 0.1)(torch.tensor([[3, 999], [3, 0]])))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_frozen_parts_cost_nothing(name: str, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is asked for a frozen parameter: only streams of the trainable ones reach the operations."""
    streams: set[int] = set()
    native = choice.for_tensor(torch.zeros(1))

    def note(function: str) -> None:
        plain = getattr(native, function)

        def noted(*args: object, **options: object) -> object:
            streams.update([t.stream for t in args[0]] if function == "perturb_" else [args[-1]])
            return plain(*args, **options)

        monkeypatch.setattr(native, function, noted)

    for function in ("perturb_", "perturbed_copy", "perturbed_rows", "perturbed_linear"):
        note(function)
    model, batch = zoo.make(name), zoo.batch()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("2." in key)
    trainable = {bz.stream_id(key) for key, p in model.named_parameters() if p.requires_grad}
    with bz.perturbed(model, NOISE, [0], [0.1]):
        model(**batch)
    assert trainable and streams == trainable


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_under_inference_mode(name: str, sizes: int) -> None:
    model, batch = zoo.make(name), zoo.batch()
    with bz.perturbed(model, NOISE, [0], [0.1]):
        expected = model(**batch).logits
    with torch.inference_mode(), bz.perturbed(model, NOISE, [0], [0.1]):
        found = model(**batch).logits
    assert torch.equal(found, expected)
    assert found.is_inference()


def test_under_autocast(large: None) -> None:
    model, x = nn.Linear(64, 32), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = moved_copy(model, 0.1)(x)
        with bz.perturbed(model, NOISE, [0], [0.1]), pytest.warns(UserWarning, match="'linear'"):
            found = model(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


WRITES = {
    "add_": lambda w: w.add_(1),
    "view": lambda w: w[1:].mul_(2),
    "setitem": lambda w: w.__setitem__(0, 1.0),
    "iadd": lambda w: w.__iadd__(1.0),
    "data": lambda w: setattr(w, "data", torch.zeros(3, 3)),
    "out": lambda w: torch.add(torch.ones(3, 3), 1, out=w),
    "foreach": lambda w: torch._foreach_add_([w], 1.0),
    "data_ptr": lambda w: w.data_ptr(),
}


@pytest.mark.parametrize("act", WRITES)
@pytest.mark.parametrize("small", [0, 1 << 14])
def test_writing_a_weight_is_refused(act: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SMALL", small)
    model = nn.Linear(3, 3)
    before = bz.digest(model)
    with bz.perturbed(model, NOISE, [0], [0.1]), pytest.raises(ValueError, match="in_place"):
        WRITES[act](model.weight)
    assert bz.digest(model) == before


def test_a_view_across_two_parameters_is_refused() -> None:
    flat = torch.randn(8)
    model = nn.Module()
    model.a, model.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    with bz.perturbed(model, NOISE, [0], [0.1]), pytest.raises(ValueError, match="shares memory"):
        flat.sum()


def test_several_directions_are_sent_to_groups() -> None:
    with (
        pytest.raises(ValueError, match="perturbed_losses"),
        bz.perturbed(nn.Linear(2, 2), NOISE, [0, 1], [1.0, 1.0]),
    ):
        pass


@pytest.mark.parametrize("name", zoo.HUGGING_FACE)
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    model, batch = zoo.make(name), zoo.batch()
    with torch.no_grad():
        # torch does not count its CPU flash attention; the composed form it does
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**batch)
        with bz.perturbed(model, NOISE, [0], [0.1]) as mode:
            model(**batch)
    assert mode.flops == counter.get_total_flops() > 0
