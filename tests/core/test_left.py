"""State that layers leave beside their output, and what lies between layers: no later step may read it from kept activations."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from tests.core.test_reuse import expected_losses

FIRST, SECOND = (torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x: Tensor, store: Any) -> Tensor:
        x = torch.tanh(self.inner(x))
        store(self, x)
        return x


class Net(nn.Module):
    def __init__(self, store: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.store = nn.ModuleList(Layer() for _ in range(4)), store

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.store)
        return x.pow(2).mean()


def nothing(layer: Layer, x: Tensor) -> None:
    pass


def attribute(layer: Layer, x: Tensor) -> None:
    layer.value = x


def detached(layer: Layer, x: Tensor) -> None:
    layer.value = x.detach()


def listed(layer: Layer, x: Tensor) -> None:
    layer.__dict__.setdefault("values", [None])[0] = 2 * x


def buffer(layer: Layer, x: Tensor) -> None:
    layer.mean.copy_(x.mean(0))


def part_of_a_buffer(layer: Layer, x: Tensor) -> None:
    layer.mean[:] = x.mean(0)


def buffer_by_out(layer: Layer, x: Tensor) -> None:
    torch.mean(x, 0, out=layer.mean)


def number(layer: Layer, x: Tensor) -> None:
    layer.value = torch.tensor(x.pow(2).mean().item())


def array(layer: Layer, x: Tensor) -> None:
    layer.value = torch.from_numpy(x.detach().numpy().copy())


def left(layer: Layer) -> Tensor:
    values = getattr(layer, "values", None)
    return values[0] if values else getattr(layer, "value", layer.mean)


def later(model: Net, x: Tensor) -> Tensor:
    """Reads the state of the first layer with the second batch alone, which shows nowhere before."""
    loss = model(x)
    return loss + left(model.layers[0]).pow(2).mean() if torch.equal(x, SECOND) else loss


def steps(model: Net, loss: Any, method: Any, cut: Any, max_group: Any, **options: Any) -> tuple[bz.ZO, list[str]]:
    """Two steps, each held against copies with moved weights."""
    zo = bz.ZO(model, loss, method, bz.Blocks(model, cut), lr=1e-2, eps=1e-2, seed=5, max_group=max_group, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in (FIRST, SECOND):
            for layer in model.layers:
                # a copy cannot be made of what a group left
                for name in ("value", "values", "places"):
                    layer.__dict__.pop(name, None)
            before = copy.deepcopy(model)
            result = zo.step(batch)
            wanted = expected_losses(before, zo, result, loss, batch)
            assert result.losses == pytest.approx(wanted, rel=1e-5, abs=0.01 * (max(wanted) - min(wanted)))
    return zo, [str(one.message) for one in caught if "kept activations" in str(one.message)]


ALONE, TOGETHER = (bz.SPZO(1, 2), [2], 1), (bz.Tree((1, 2, 1)), [1, 3], "auto")


@pytest.mark.parametrize(
    ("store", "way"),
    [
        *((attribute, ALONE), (attribute, TOGETHER), (detached, ALONE), (listed, TOGETHER)),
        *((number, ALONE), (array, TOGETHER), (buffer, ALONE), (part_of_a_buffer, TOGETHER), (buffer_by_out, ALONE)),
    ],
)
def test_state_of_layers_that_is_read_from_some_step_on(store: Any, way: tuple[Any, Any, Any]) -> None:
    method, cut, max_group = way
    zo, said = steps(Net(store), later, method, cut, max_group)
    assert len(said) == 1 and "layers leave tensors elsewhere than in their output" in said[0]
    assert zo.reuse.reason is not None


def table(layer: Layer, x: Tensor) -> None:
    """Made once, as of angles."""
    if not hasattr(layer, "table"):
        layer.table = torch.arange(6.0).cos()
    x *= layer.table[0]


def in_place(layer: Layer, x: Tensor) -> None:
    x.mul_(1.5)
    x[:, 0] = 0.25


def counted(layer: Layer, x: Tensor) -> None:
    layer.places = x.argmax(-1)


def ordered(layer: Layer, x: Tensor) -> None:
    layer.places = x.argsort(-1)


def masked(layer: Layer, x: Tensor) -> None:
    layer.places = ~(x > 0.05)


def masked_buffer(layer: Layer, x: Tensor) -> None:
    layer.__dict__.setdefault("places", torch.zeros(x.shape, dtype=torch.bool)).copy_(x > 0.05)


def read_later(model: Net, x: Tensor) -> Tensor:
    loss = model(x)
    return loss + (x * model.layers[0].places).mean() if torch.equal(x, SECOND) else loss


@pytest.mark.parametrize("store", [counted, ordered, masked, masked_buffer])
def test_places_that_layers_leave_and_that_are_read_from_some_step_on(store: Any) -> None:
    """Which are of another evaluation; whether they differ in it may show once in many steps."""
    zo, said = steps(Net(store), read_later if store is not counted else argmax_later, bz.SPZO(1, 2), [2], 1)
    told = ("reads whole numbers that bypassed layers left", "it uses more of the layers than the output of the last")
    assert len(said) == 1 and any(one in said[0] for one in told) and zo.reuse.reason is not None


def argmax_later(model: Net, x: Tensor) -> Tensor:
    loss = model(x)
    return loss * (1 + model.layers[0].places.sum()) if torch.equal(x, SECOND) else loss


@pytest.mark.parametrize("store", [nothing, table, in_place, counted])
def test_what_no_loss_can_read_is_no_reason(store: Any) -> None:
    for method, cut, max_group in (ALONE, TOGETHER):
        zo, said = steps(Net(store), lambda model, x: model(x), method, cut, max_group)
        assert zo.reuse.reason is None and not said


def test_an_output_that_is_a_view_is_all_that_is_left() -> None:
    class Viewed(Layer):
        def forward(self, x: Tensor, store: Any) -> Tensor:
            return super().forward(x.view(-1, 6), store).view(3, 6)

    for method, cut, max_group in (ALONE, TOGETHER):
        model = Net(nothing)
        model.layers = nn.ModuleList(Viewed() for _ in range(4))
        zo, said = steps(model, lambda model, x: model(x), method, cut, max_group)
        assert zo.reuse.reason is None and not said


def looks_inside(model: Net, x: Tensor, when: Any) -> Tensor:
    """A penalty on the first layer's output, which the loss keeps for itself."""
    seen: list[Tensor] = []
    handle = model.layers[0].register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        loss = model(x)
    finally:
        handle.remove()
    return loss + 0.5 * seen[-1].pow(2).mean() if when(x, loss) else loss


@pytest.mark.parametrize(
    "hides",
    [
        lambda inside: (inside > 0.1).float().mean(),
        lambda inside: inside.argmax(-1).float().mean(),
        lambda inside: torch.nan_to_num(inside).mean(),
        lambda inside: inside.sort().indices.float().mean(),
        lambda inside: float(inside.isnan().any()) or 1.0,
        lambda inside: nn.functional.scaled_dot_product_attention(inside, inside, torch.ones(3, 6).cumsum(0)).mean(),
    ],
    ids=["greater", "argmax", "nan_to_num", "sort", "isnan", "attention"],
)
def test_functions_that_would_hide_what_was_not_kept(hides: Any) -> None:
    def loss(model: Net, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = model.layers[0].register_forward_hook(lambda *call: seen.append(2 * call[-1]))
        try:
            value = model(x)
        finally:
            handle.remove()
        return value + hides(seen[-1]) if torch.equal(x, SECOND) else value

    zo, said = steps(Net(nothing), loss, bz.SPZO(1, 2), [2], 1)
    assert len(said) == 1 and "is asked of what lies between bypassed layers" in said[0]


@pytest.mark.parametrize("max_group", [1, "auto"])
def test_inside_of_layers_looked_at_by_some_evaluations_alone(max_group: Any) -> None:
    """Which ones may depend on the data, or on the loss itself: the trial before the first step need not be among them."""
    middle = float(Net(nothing)(FIRST))
    for when in (lambda x, loss: torch.equal(x, SECOND), lambda x, loss: bool(loss < middle)):
        for evaluate in ("perturbed", "in_place") if max_group == 1 else ("perturbed",):

            def loss(model: Net, x: Tensor, when: Any = when) -> Tensor:
                return looks_inside(model, x, when)

            zo, said = steps(Net(nothing), loss, bz.SPZO(1, 2), [2], max_group, evaluate=evaluate)
            assert len(said) == 1 and "it uses more of the layers than the output of the last" in said[0]


def test_a_loss_that_is_not_finite_itself_says_nothing_of_the_reuse() -> None:
    model = Net(nothing)

    def loss(model: Net, x: Tensor) -> Tensor:
        value = model(x)
        return value * float("inf") if torch.equal(x, SECOND) else value

    zo = bz.ZO(model, loss, bz.SPZO(1, 2), bz.Blocks(model, [2]))
    zo.step(FIRST)
    with pytest.raises(ValueError, match="not finite|inf"):
        zo.step(SECOND)
    assert zo.reuse.reason is None
    zo.step(FIRST)
