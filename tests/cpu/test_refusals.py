"""What must not be moved is refused, by name and with a remedy, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.noise import stream_id

CALLS: dict[str, Callable[[Any], None]] = {
    "perturb_": lambda params: bz.perturb_(params, bz.Noise(1), 0.5),
    "shift_": lambda params: bz.shift_(params, bz.Noise(1), [(0, 0.5), (1, -0.5)]),
    "update_": lambda params: bz.update_(params, bz.Noise(1), [0.5, 0.25], decay=0.1),
    "replay_": lambda params: bz.replay_(params, [bz.Record(0, 1, "gaussian", (bz.BlockUpdate((0,), (0.5,)),))]),
}


def bad_params() -> dict[str, tuple[dict[str, Tensor], str]]:
    base = torch.ones(40)
    good = torch.ones(8)
    return {
        "expanded": ({"a": good, "b": torch.ones(1, 4).expand(3, 4)}, "'b' is an expanded view"),
        "overlapping": ({"a": base[:30], "b": base[20:]}, "'a' and 'b' overlap in memory"),
        "one inside the other": ({"a": base, "b": base[5:7]}, "'a' and 'b' overlap in memory"),
        "transposed view": ({"a": base.view(5, 8), "b": base.view(5, 8).t()}, "'a' and 'b' overlap in memory"),
        "one stream": ({"plumless": good, "buckeroo": torch.ones(3)}, "'plumless' and 'buckeroo' have the same stream"),
        "integers": ({"a": good, "b": torch.ones(3, dtype=torch.int64)}, "'b' has dtype torch.int64"),
        "float64": ({"a": good, "b": torch.ones(3, dtype=torch.float64)}, "'b' has dtype torch.float64"),
        "sparse": ({"a": good, "b": torch.eye(3).to_sparse()}, "'b' is torch.sparse_coo"),
        "meta": ({"a": good, "b": torch.ones(3, device="meta")}, "'b' is .* on meta"),
        "one canonical name": ({"a": good, "module.a": torch.ones(3)}, "two tensors have the canonical name 'a'"),
    }


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("kind", list(bad_params()))
def test_bad_tensors(kind: str, call: str) -> None:
    params, message = bad_params()[kind]
    with pytest.raises(ValueError, match=message):
        CALLS[call](params)
    for tensor in params.values():
        if not tensor.is_meta:
            dense = tensor.to_dense() if tensor.is_sparse else tensor
            assert bool(((dense == 1) | (dense == 0)).all())


def test_the_clash_of_names_is_real() -> None:
    assert stream_id("plumless") == stream_id("buckeroo") == 0x4DDB0C25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: bz.perturb_({"w": w}, bz.Noise(1), float("nan")), "a coefficient is nan"),
        (lambda w: bz.perturb_({"w": w}, bz.Noise(1), 1e39), "a coefficient is inf"),
        (lambda w: bz.perturb_({"w": w}, bz.Noise(1), 1.0, direction=2**32 - 1), "direction is"),
        (lambda w: bz.shift_({"w": w}, bz.Noise(1), [(0, 1.0), (-1, 1.0)]), "direction is -1"),
        (lambda w: bz.update_({"w": w}, bz.Noise(1), [1.0, 2.0], [0]), "2 coefficients for 1 directions"),
        (lambda w: bz.update_({"w": w}, bz.Noise(1), [1.0], decay=float("inf")), "decay is inf"),
        (lambda w: bz.perturb_({"w": w}, 5, 1.0), "noise is a int"),
        (lambda w: bz.perturb_(iter([w]), bz.Noise(1), 1.0), "params is a list_iterator"),
        (lambda w: bz.perturb_([w, None], bz.Noise(1), 1.0), "params holds '1': NoneType"),
        (lambda w: bz.perturb_({3: w}, bz.Noise(1), 1.0), "params holds 3"),
    ],
)
def test_bad_numbers(call: Callable[[Tensor], None], message: str) -> None:
    w = torch.ones(300)
    with pytest.raises(ValueError, match=message):
        call(w)
    assert bool((w == 1).all())


def test_a_tied_tensor_is_moved_once_under_its_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(30, 16)
            self.head = nn.Linear(16, 30, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    before = model.embed.weight.detach().clone()
    bz.perturb_(model, bz.Noise(4), 0.5)
    expected = before + 0.5 * bz.Noise(4).sample("embed.weight", before.shape)
    assert torch.equal(model.embed.weight, expected)
    again = {"embed.weight": before.clone()}
    again["head.weight"] = again["embed.weight"]
    bz.perturb_(again, bz.Noise(4), 0.5)
    assert torch.equal(again["embed.weight"], expected)


def test_frozen_parameters_stay() -> None:
    model = nn.Linear(8, 8)
    model.bias.requires_grad_(False)
    bias, weight = model.bias.clone(), model.weight.detach().clone()
    bz.perturb_(model, bz.Noise(4), 0.5)
    assert torch.equal(model.bias, bias) and not torch.equal(model.weight, weight)


def test_autograd_hears_of_the_write() -> None:
    w = torch.ones(5, requires_grad=True)
    product = (w * w).sum()
    with torch.no_grad():
        bz.perturb_({"w": w}, bz.Noise(1), 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        w = torch.ones(200)
        bz.perturb_({"w": w}, bz.Noise(1), 0.5)
    assert torch.equal(w.clone(), 1 + 0.5 * bz.Noise(1).sample("w", 200))


def test_a_model_that_changed_since_its_last_check_is_checked_again() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    noise = bz.Noise(1)

    def moved() -> set[str]:
        """Names of the parameters that a move finds, after which every weight is as before."""
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        bz.perturb_(model, noise, 1.0)
        found = set()
        for name, p in model.named_parameters():
            if not torch.equal(p, before[name]):
                found.add(name)
                assert torch.equal(p, before[name] + noise.sample(name, tuple(p.shape)).to(p.dtype))
                p.detach().copy_(before[name])
        return found

    every = {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert moved() == moved() == every
    model["a"].bias.requires_grad_(False)
    assert moved() == every - {"a.bias"}
    model["a"].bias.requires_grad_(True)
    model["b"].weight = nn.Parameter(torch.zeros(4, 3))
    assert moved() == every
    model["c"] = model.pop("b")  # the same parameters under another name
    assert moved() == {"a.weight", "a.bias", "c.weight", "c.bias"}
    model["c"].bias.data = model["a"].bias.data[:2]
    with pytest.raises(ValueError, match=r"'a.bias' and 'c.bias' overlap|'c.bias' and 'a.bias' overlap"):
        bz.perturb_(model, noise, 1.0)
    model["c"].bias.data = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="'c.bias' has dtype torch.float64"):
        bz.perturb_(model, noise, 1.0)
    model["c"].bias.data = torch.zeros(3).bfloat16()
    assert len(moved()) == 4
