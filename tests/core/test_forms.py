"""What shows of a way that evaluations go: arguments, outputs, forms of batches, numbers, objects that can be written to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.optim.reuse import MOST_FORMS, Reuse
from blockzo.perturb.forms import form_of
from blockzo.perturb.passes import fingerprint
from tests.core.test_reuse import expected_losses

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(7))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: Tensor, number: float = 0.0) -> Tensor:
        return torch.tanh(self.lin(x)) * (1 + 0.1 * number)


class Net(nn.Module):
    """Four layers; what it gives beside its logits, and what is done with that, a case says."""

    kind: type[nn.Module] = Layer

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(self.kind() for _ in range(4))
        self.head = nn.Linear(6, 3)
        self.wants_states = False

    def run(self, x: Tensor, number: float = 0.0) -> list[Tensor]:
        states = []
        for layer in self.layers:
            x = layer(x, number)
            states.append(x)
        return states

    def forward(self, x: Any, mode: int = 0, share: float = 0.0, number: float = 0.0) -> Any:
        states = self.run(x["x"] if isinstance(x, dict) else x, number)
        side = sum(state.pow(2).mean() for state in states)
        logits = self.head(states[-1])
        if self.wants_states:
            return (logits, side)
        return (logits + (side if mode or share or (isinstance(x, dict) and "aux" in x) else 0.0),)


def read(out: Tensor) -> Tensor:
    return out.logsumexp(-1).pow(2).mean()


def hooked(m: nn.Module, b: dict[str, Any]) -> Tensor:
    seen: list[Tensor] = []
    handle = m.layers[0].register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        out = read(m(b["x"])[0])
    finally:
        handle.remove()
    return out + seen[0].pow(2).mean() if b["aux"] else out


def longer(m: nn.Module, b: tuple[Tensor, bool]) -> Tensor:
    m.wants_states = b[1]
    logits, *side = m(b[0])
    return read(logits) + sum(side)


SWITCHES: dict[str, tuple[Callable[[nn.Module, Any], Tensor], list[Any]]] = {
    "a key of a dict that the model is called with": (lambda m, b: read(m(b)[0]), [{"x": X}, {"x": X, "aux": X}]),
    "a whole number": (lambda m, b: read(m(b[0], mode=b[1])[0]), [(X, 0), (X, 1)]),
    "a weight that was 0": (lambda m, b: read(m(b[0], share=b[1])[0]), [(X, 0.0), (X, 0.5)]),
    "one entry more in a tuple": (longer, [(X, False), (X, True)]),
    "a switch in the batch": (hooked, [{"x": X, "aux": False}, {"x": X, "aux": True}]),
}


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_shows_is_found_at_once(name: str, evaluate: str) -> None:
    loss, batches = SWITCHES[name]
    model = Net()
    zo = bz.ZO(model, loss, bz.SPZO(1, 2), cut(model), lr=1e-3, eps=1e-2, evaluate=evaluate)
    zo.step(batches[0])
    assert zo.reuse.reason is None
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="kept activations"):
        result = zo.step(batches[1])
    wanted = expected_losses(before, zo, result, loss, batches[1])
    assert result.losses == pytest.approx(wanted, rel=1e-5 if evaluate == "perturbed" else 1e-4)


def cut(model: nn.Module) -> bz.Blocks:
    return bz.Blocks(model, [2], layers="layers", example={"x": X})


NUMBERS: dict[str, Callable[[Tensor], float]] = {
    "a class, small as a switch": lambda first: int(first.mean(0).argmax()),
    # whose value is no part of the form of a call
    "a size": lambda first: int(100 * first.mean(0).argmax()),
    "a mean": lambda first: 50 * float(first.mean()),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_that_an_earlier_call_gave_is_found(kind: str) -> None:
    """What comes of a first call is a Python number in the second one, of which tensors show nothing."""

    def loss(m: nn.Module, b: Tensor) -> Tensor:
        first = m(b)[0]
        return read(m(b, number=NUMBERS[kind](first) if b.sum() > 0 else 0)[0]) + first.pow(2).mean()

    model = Net()
    zo = bz.ZO(model, loss, bz.SPZO(1, 2), cut(model), lr=1e-3, eps=5e-2)
    batches = [torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)) * 0.3 for seed in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zo.step(-batches[0].abs())
        assert zo.reuse.reason is None
        for batch in batches:
            before = copy.deepcopy(model)
            result = zo.step(batch)
            assert result.losses == pytest.approx(expected_losses(before, zo, result, loss, batch), rel=1e-5)


@dataclass
class State:
    hidden: Tensor


class Writes(Layer):
    def forward(self, state: Any, number: float = 0.0) -> Any:
        state.hidden.copy_(torch.tanh(self.lin(state.hidden)))
        return state


class Sets(Layer):
    def forward(self, state: Any, number: float = 0.0) -> Any:
        state.hidden = torch.tanh(self.lin(state.hidden))
        return state


@pytest.mark.parametrize("kind", [Writes, Sets])
@pytest.mark.parametrize("holder", [State, SimpleNamespace])
@pytest.mark.parametrize("method", [bz.SPZO(1, 2), bz.SPZO(1, 2, "decoupled"), bz.SPZO(1, 4, one_sided=True)], ids=str)
def test_an_object_that_later_layers_write_to_is_not_kept(kind: Any, holder: Any, method: Any) -> None:
    class Holds(Net):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            state = holder(hidden=x.clone())
            for layer in self.layers:
                state = layer(state)
            return read(self.head(state.hidden))

    Holds.kind = kind
    model = Holds()
    before = copy.deepcopy(model)
    loss = lambda m, b: m(b)  # noqa: E731
    zo = bz.ZO(model, loss, method, cut(model), lr=1e-3, eps=1e-2)
    with pytest.warns(UserWarning, match=f"layer 1 returns a {holder.__name__}, which later layers may write to"):
        result = zo.step(X)
    assert result.losses == pytest.approx(expected_losses(before, zo, result, loss, X), rel=1e-5)


def test_layers_that_take_no_tensors_run_in_groups() -> None:
    """What is kept of their inputs is empty."""

    class First(nn.Module):
        def __init__(self, net: list[nn.Module]) -> None:
            super().__init__()
            self.lin, self.net = nn.Linear(6, 6), net

        def forward(self) -> Tensor:
            return torch.tanh(self.lin(self.net[0].given))

    class Reads(Net):
        def __init__(self) -> None:
            super().__init__()
            holder: list[nn.Module] = [self]
            self.layers = nn.ModuleList([First(holder), *(Layer() for _ in range(3))])

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.given = x
            x = self.layers[0]()
            for layer in list(self.layers)[1:]:
                x = layer(x)
            return read(self.head(x))

    model = Reads()
    zo = bz.ZO(model, lambda m, b: m(b), bz.SPZO(1, 2), cut(model), lr=1e-3, eps=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zo.step(X)
    assert zo.reuse.reason is None


def test_forms() -> None:
    assert form_of({"a": X, "b": None}) == form_of({"a": 2 * X})
    assert form_of({"a": X}) != form_of({"b": X}) != form_of({"a": X[0]})
    assert form_of(3) != form_of(4) and form_of(300) == form_of(400) and form_of(0.5) == form_of(2.0) != form_of(0.0)
    assert form_of("loss") != form_of("rank") and form_of("one text", texts=False) == form_of("two", texts=False)
    assert form_of([X] * 3) != form_of([X] * 2) and form_of([X] * 99) == form_of([X] * 98)
    assert form_of(State(X)) == form_of(State(X + 1)) != form_of(State(X[0]))
    assert hash(form_of({"a": [State(X), {"b": (1, None, {2})}]})) is not None
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert form_of(deep) == form_of([deep])


def test_batches_of_many_forms_do_not_cost_a_check_each() -> None:
    model = Net()
    reuse, tree = Reuse(cut(model)), bz.SPZO(1, 2).tree(2)
    reuse.paths.add(("tried",))
    checks = 0
    for number in range(4 * MOST_FORMS):
        reuse.meet({f"key {number}": X})
        checks += reuse.needed(tree)
    assert checks <= MOST_FORMS + 1


def test_a_small_first_input_does_not_hide_the_others() -> None:
    """A time step before the states, as diffusion models have it; masks of long texts are left out as before."""
    states = torch.randn(2, 50, 8)
    assert len(fingerprint([torch.tensor(0.3), states])) == 2
    assert len(fingerprint([states, torch.zeros(2, 1, 500, 500)])) == 1
