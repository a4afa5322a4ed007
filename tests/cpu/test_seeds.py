"""Updates over several seeds in one pass, lists of tensors without names, and noise written into memory."""

from __future__ import annotations

import pytest
import torch

import blockzo as bz
from blockzo.ops.backends import cpu
from blockzo.ops.steps import joined_steps
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, same_bits, weights
from tests.cpu.test_steps import Counted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_update_of_seeds_is_their_sum_rounded_once(dtype: torch.dtype, distribution: str) -> None:
    w, numbers = weights(1000, dtype), [0.1 - 0.01 * k for k in range(12)]
    noises = [bz.Noise(2**64 - 1 - 5 * k, distribution) for k in range(12)]
    total = torch.zeros(1000)
    for noise, number in zip(noises, numbers, strict=True):
        total = total + torch.tensor(number) * noise.sample("w", 1000)
    want = (w.float() * torch.tensor(0.75) - total).to(dtype)
    bz.update_({"w": w}, noises, numbers, decay=0.25)
    assert same_bits(w, want)


def test_it_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    monkeypatch.setattr(cpu, "_native", counted)
    bz.update_({"w": torch.zeros(700)}, [bz.Noise(k) for k in range(30)], [1.0] * 30)
    assert counted.moved == 700


def test_updates_below_the_spacing_add_up_before_they_are_rounded() -> None:
    noises, numbers = [bz.Noise(k) for k in range(64)], [2.0**-10] * 64
    once, each = torch.ones(4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    bz.update_([once], noises, numbers)
    for noise, number in zip(noises, numbers, strict=True):
        bz.update_([each], noise, [number])
    assert bool((each == 1).all()) and not bool((once == 1).all())


def test_one_seed_in_a_list_is_the_plain_update() -> None:
    noise = bz.Noise(4, "gaussian")
    listed, plain = weights(300, torch.bfloat16), weights(300, torch.bfloat16)
    bz.update_({"w": listed}, [noise] * 3, [0.1, 0.2, 0.3], [0, 1, 7], stochastic_rounding=True)
    bz.update_({"w": plain}, noise, [0.1, 0.2, 0.3], [0, 1, 7], stochastic_rounding=True)
    assert same_bits(listed, plain)
    assert len(joined_steps([noise] * 3, [0, 1, 7], [0.1, 0.2, 0.3])) == 1


def test_a_shard_gets_its_part() -> None:
    noises, whole = [bz.Noise(k, "gaussian") for k in range(3)], torch.zeros(20, 40)
    part = torch.zeros(20, 8)
    bz.update_({"w": whole}, noises, [1.0, 2.0, 3.0])
    bz.update_({"w": bz.Shard.at(part, (20, 40), (0, 16))}, noises, [1.0, 2.0, 3.0])
    assert torch.equal(part, whole[:, 16:24])
    bz.fill_(whole, noises[0], "w", direction=2)
    bz.fill_(bz.Shard.at(part, (20, 40), (0, 16)), noises[0], "w", direction=2)
    assert torch.equal(part, whole[:, 16:24])


@pytest.mark.parametrize(
    ("noises", "numbers", "text"),
    [
        ([], [], "list of nothing; expected at least one"),
        ([3], [1.0], "list of int"),
        ([bz.Noise(1), bz.Noise(2, "gaussian")], [1.0, 1.0], "several kinds"),
        ([bz.Noise(1)], [1.0, 1.0], "1 noises for 2 directions and 2 coefficients"),
        ([bz.Noise(1), bz.Noise(2)], [1.0, float("nan")], "a coefficient is nan"),
    ],
)
def test_what_cannot_be_done_is_refused(noises: list[bz.Noise], numbers: list[float], text: str) -> None:
    w = torch.ones(5)
    with pytest.raises(ValueError, match=text):
        bz.update_([w], noises, numbers)
    assert bool((w == 1).all())


def test_tensors_of_a_list_are_named_by_their_place() -> None:
    listed, named = [torch.ones(50), torch.ones(3, 4)], {"0": torch.ones(50), "1": torch.ones(3, 4)}
    for params in (listed, named):
        bz.perturb_(params, bz.Noise(5), 0.5, direction=3)
    assert all(torch.equal(a, b) for a, b in zip(listed, named.values(), strict=True))
    assert bz.digest(listed) == bz.digest(named)
    assert torch.equal(bz.project(tuple(listed), bz.Noise(5), [3]), bz.project(named, bz.Noise(5), [3]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_in_memory_is_the_sample(dtype: torch.dtype, distribution: str) -> None:
    noise = bz.Noise(2**63 + 5, distribution)
    tensor = torch.full((40, 33), float("nan"), dtype=dtype).t()
    bz.fill_(tensor, noise, "layer.weight", direction=2)
    assert same_bits(tensor.contiguous(), noise.sample("layer.weight", (33, 40), 2, dtype=dtype))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_seeds_of_a_low_rank(distribution: str) -> None:
    noises = [bz.Noise(k, distribution, rank=2) for k in range(5)]
    held = {"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(0)), "b": torch.ones(7)}
    want = {}
    for name, w in held.items():
        total = torch.zeros_like(w)
        for k, noise in enumerate(noises):
            total = total + torch.tensor(0.1 * k) * noise.sample(name, w.shape)
        want[name] = w - total
    bz.update_(held, noises, [0.1 * k for k in range(5)])
    assert all(torch.equal(held[name], want[name]) for name in held)
    bz.fill_(held["w"], noises[1], "w")
    assert torch.equal(held["w"], noises[1].sample("w", (20, 30)))
    with pytest.raises(ValueError, match="several kinds"):
        bz.update_(held, [noises[0], bz.Noise(1, distribution)], [1.0, 1.0])
