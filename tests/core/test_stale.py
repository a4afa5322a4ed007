"""A loss that caches what it made of trainable weights is refused; one that leaves values behind and makes them anew is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.optim.repeatable import NotRepeatable

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(7))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("table", torch.zeros(6, 6))
        self.cache: dict[str, Tensor] = {}
        self.ready = False
        self.side: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))).logsumexp(-1).pow(2).mean()


def kept_features(m: Any, x: Tensor) -> Tensor:
    if "prompt" not in m.cache:
        m.cache["prompt"] = m.first(torch.ones(1, 6))
    return m(x + m.cache["prompt"])


def fused(m: Any, x: Tensor) -> Tensor:
    if m.side is None:
        m.side = torch.cat([m.first.weight, m.last.weight]).detach()
    return m(x) + (x @ m.side.t()).tanh().mean()


@functools.lru_cache(maxsize=1)
def memory(m: Any, number: int) -> Tensor:
    return m.first(torch.full((1, 6), float(number)))


def memoised(m: Any, x: Tensor) -> Tensor:
    return m(x + memory(m, 2))


def table(m: Any, x: Tensor) -> Tensor:
    if not m.ready:
        m.table.copy_(m.first.weight)
        m.ready = True
    return m(x @ m.table[:, :])


def part_of_a_table(m: Any, x: Tensor) -> Tensor:
    if not m.ready:
        m.table[:2] = m.first.weight[:2].sin()
        m.ready = True
    return m(x) + (m.table[1] * x).mean()


def reference(m: Any, x: Tensor) -> Tensor:
    """A penalty for leaving the first weights, made where the loss is."""
    loss = m(x)
    return loss + (loss - m.cache.setdefault("first", loss.detach() + 0.1)).pow(2)


def teacher_that_follows(m: Any, x: Tensor) -> Tensor:
    """A mean of the weights of all evaluations, which is right where two of them are of the same weights."""
    weight = m.first.weight
    teacher = m.cache.setdefault("teacher", weight.detach().clone())
    teacher.mul_(0.9).add_(weight.detach(), alpha=0.1)
    return m(x) + (x @ (weight - 0.5 * teacher)).pow(2).mean()


def mean_of_activations(m: Any, x: Tensor) -> Tensor:
    if not m.ready:
        m.side, m.ready = m.first(x).mean(0), True
    m.side += 0.5 * (m.first(x).mean(0) - m.side)
    return m(x) + m.side.pow(2).mean()


CACHES = (kept_features, fused, memoised, table, part_of_a_table, reference, teacher_that_follows, mean_of_activations)


@pytest.mark.parametrize("evaluate", ["perturbed", "in_place"])
@pytest.mark.parametrize("loss", CACHES, ids=lambda f: f.__name__)
def test_a_cache_of_what_weights_made_is_refused(loss: Callable[..., Tensor], evaluate: str) -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(NotRepeatable, match="reads values that an earlier evaluation made of trainable weights"):
        bz.ZO(model, loss, bz.MeZO(), eps=1e-2, evaluate=evaluate).step(X)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    held = [model.table, *model.cache.values(), *([] if model.side is None else [model.side])]
    assert all(bool(tensor.isfinite().all()) for tensor in held), "what was set to NaN is not put back"
    memory.cache_clear()


def test_the_error_says_where_it_is_held() -> None:
    with pytest.raises(NotRepeatable, match=r"'cache' of the model, \[1, 6\]"):
        bz.ZO(Net(), kept_features, bz.MeZO()).step(X)


def left_behind(m: Any, x: Tensor) -> Tensor:
    """Written again before it is read."""
    m.side = m.first(x)
    return m(x) + m.side.mean()


def scratch(m: Any, x: Tensor) -> Tensor:
    m.table[:3, :].copy_(m.first(x))
    return m.last(m.table[:3]).pow(2).mean()


def of_inputs(m: Any, x: Tensor) -> Tensor:
    return m(x + m.cache.setdefault("mask", torch.arange(6.0).cos()))


def of_frozen(m: Any, x: Tensor) -> Tensor:
    return m(x + m.cache.setdefault("frozen", m.table[0].cos()))


HISTORY: list[Tensor] = []


def logged(m: Any, x: Tensor) -> Tensor:
    loss = m(x)
    HISTORY.append(loss.detach())
    torch.stack(HISTORY).mean()
    return loss


def counted(m: Any, x: Tensor) -> Tensor:
    """A mean that is looked at outside of the loss."""
    mean = m.cache.setdefault("mean", m.first(x).mean(0))
    mean.lerp_(m.first(x).mean(0), 0.5)
    return m(x)


def summed(m: Any, x: Tensor) -> Tensor:
    m.table.zero_()
    m.table[:3] += m.first(x)
    return m(x) + m.table.mean()


@pytest.mark.parametrize(
    "loss", [left_behind, scratch, of_inputs, of_frozen, logged, counted, summed], ids=lambda f: f.__name__
)
def test_values_that_no_loss_depends_on_pass(loss: Callable[..., Tensor]) -> None:
    HISTORY.clear()
    model = Net()
    result = bz.ZO(model, loss, bz.MeZO(), eps=1e-2, max_group=1).step(X)
    assert result.losses[0] != result.losses[1]


def test_a_reference_made_before_training_passes() -> None:
    model = Net()
    with torch.no_grad():
        first = model(X)
    bz.ZO(model, lambda m, x: m(x) + (m(x) - first - 0.1).pow(2), bz.MeZO(), eps=1e-2).step(X)


def test_a_tensor_kept_from_a_group_is_refused_in_words() -> None:
    """It is of a batch of evaluations that is over."""
    HISTORY.clear()
    with pytest.raises(ValueError, match=r"keeps a tensor of an evaluation that ran in a group.*max_group=1"):
        bz.ZO(Net(), logged, bz.SPSA(4), eps=1e-2, max_group=4).step(X)


FORMS = {
    "like": lambda x: torch.ones_like(x).tril(),
    "new": lambda x: x.new_ones(x.shape).tril(),
    "to": lambda x: torch.ones(x.shape).tril().to(x),
    "type_as": lambda x: torch.ones(x.shape).tril().type_as(x),
    "expand": lambda x: torch.arange(x.shape[-1], dtype=x.dtype).expand_as(x),
}


@pytest.mark.parametrize("kind", FORMS)
def test_what_takes_the_form_of_activations_alone_may_be_kept(kind: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head, self.mask = nn.Linear(4, 4), nn.Linear(4, 1), None

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            if self.mask is None:
                self.mask = FORMS[kind](x)
            return (self.head(x * self.mask) ** 2).mean()

    bz.ZO(Masked(), lambda model, x: model(x), bz.MeZO(), max_group=1).step(torch.randn(4, 4))
