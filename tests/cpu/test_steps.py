"""What training is built of: an in-place MeZO step in 2P + 1 or P + 1 passes, and replay that gives the bits of training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import blockzo as bz
from blockzo import _native
from blockzo.ops.backends import cpu
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, ISAS, isa, same_bits, weights

EPS, LR = 1e-2, 1e-3


class Counted:
    """The native module, with the weights that pass through `apply` counted."""

    def __init__(self) -> None:
        self.moved = 0

    def apply(self, tensors, *rest) -> None:  # type: ignore[no-untyped-def]
        for view in tensors:
            self.moved += int(torch.Size(view[3]).numel())
        _native.apply(tensors, *rest)


def loss(params: dict[str, Tensor]) -> float:
    return float(sum(((p.double() - 0.5) ** 2).sum() + p.double().sin().sum() for p in params.values()))


def mezo_step(params: dict[str, Tensor], noise: bz.Noise, directions: int, two_sided: bool) -> list[float]:
    """One step in place: each restore rides along with the next perturbation, the last one with the update."""
    base = 0.0 if two_sided else loss(params)
    scalars = []
    for k in range(directions):
        undo = [] if k == 0 else [(k - 1, EPS if two_sided else -EPS)]
        bz.shift_(params, noise, [*undo, (k, EPS)])
        ahead = loss(params)
        if two_sided:
            bz.shift_(params, noise, [(k, -2 * EPS)])
            scalars.append((ahead - loss(params)) / (2 * EPS))
        else:
            scalars.append((ahead - base) / EPS)
    coefficients = [LR * g / directions for g in scalars]
    coefficients[-1] += -EPS if two_sided else EPS
    bz.update_(params, noise, coefficients)
    return scalars


def naive_step(params: dict[str, Tensor], noise: bz.Noise, directions: int, two_sided: bool) -> list[float]:
    """The same with copies of everything."""

    def at(k: int, scale: float) -> float:
        return loss({n: p + scale * noise.sample(n, p.shape, k) for n, p in params.items()})

    scalars = []
    for k in range(directions):
        other = at(k, -EPS) if two_sided else loss(params)
        scalars.append((at(k, EPS) - other) / (2 * EPS if two_sided else EPS))
    for name, p in params.items():
        for k, g in enumerate(scalars):
            p -= LR * g / directions * noise.sample(name, p.shape, k)
    return scalars


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mezo_in_place(distribution: str, directions: int, two_sided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    params = {"a": torch.randn(50, 7, generator=generator), "b": torch.randn(333, generator=generator)}
    copies = {name: p.clone() for name, p in params.items()}
    noise = bz.Noise(11, distribution)
    counted = Counted()
    monkeypatch.setattr(cpu, "_native", counted)
    scalars = mezo_step(params, noise, directions, two_sided)
    passes = 2 * directions + 1 if two_sided else directions + 1
    assert counted.moved == passes * sum(p.numel() for p in params.values())
    wanted = naive_step(copies, noise, directions, two_sided)
    torch.testing.assert_close(torch.tensor(scalars), torch.tensor(wanted), rtol=1e-3, atol=1e-2)
    for name, p in params.items():
        # restoring in place rounds a few times, no more
        torch.testing.assert_close(p, copies[name], rtol=2e-6, atol=2e-6)


def record(step: int, distribution: str, terms: int, decay: float, stochastic: bool) -> bz.Record:
    update = bz.BlockUpdate(
        tuple(range(terms)), tuple(1e-3 * (k + 1) * (-1) ** step for k in range(terms)), decay=decay
    )
    return bz.Record(step, 1000 + step, distribution, (update,), stochastic_rounding=stochastic)


@given(
    st.sampled_from(ISAS),
    st.sampled_from(DTYPES),
    st.lists(
        st.tuples(st.sampled_from(DISTRIBUTIONS), st.integers(0, 3), st.sampled_from([0.0, 0.0, 1e-3]), st.booleans()),
        max_size=40,
    ),
    st.integers(0, 3000),
)
def test_replay_is_update_after_update(name, dtype, kinds, size) -> None:  # type: ignore[no-untyped-def]
    records = [record(k, *kind) for k, kind in enumerate(kinds)]
    trained, replayed = {"w": weights(size, dtype)}, {"w": weights(size, dtype)}
    with isa(name):
        for r in records:
            (part,) = r.blocks
            noise = bz.Noise(r.seed, r.distribution)
            bz.update_(trained, noise, part.coefficients, part.directions, part.decay, r.stochastic_rounding)
        bz.replay_(replayed, records)
    assert same_bits(replayed["w"], trained["w"])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_replay_of_a_thousand(isa: str, distribution: str) -> None:
    records = [record(k, distribution, 1, 0.0, False) for k in range(1000)]
    for dtype in DTYPES:
        trained, replayed = {"w": weights(5000, dtype)}, {"w": weights(5000, dtype)}
        for r in records:
            bz.update_(trained, bz.Noise(r.seed, distribution), r.blocks[0].coefficients, [0])
        bz.replay_(replayed, records)
        assert same_bits(replayed["w"], trained["w"])


def test_replay_by_blocks() -> None:
    blocks = (bz.BlockUpdate((0,), (0.5,)), bz.BlockUpdate((3, 1), (0.25, -2.0)))
    params = {"first": torch.zeros(100), "second": torch.zeros(100)}
    bz.replay_(params, [bz.Record(0, 9, "gaussian", blocks)], layout={"first": 0, "second": 1})
    noise = bz.Noise(9, "gaussian")
    assert torch.equal(params["first"], -(0.5 * noise.sample("first", 100, 0)))
    total = 0.25 * noise.sample("second", 100, 3) + -2.0 * noise.sample("second", 100, 1)
    assert torch.equal(params["second"], 0 - total)
    with pytest.raises(ValueError, match="layout"):
        bz.replay_(params, [bz.Record(0, 9, "gaussian", blocks)])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_stochastic_rounding_keeps_small_updates_on_average(isa: str, dtype: torch.dtype, distribution: str) -> None:
    """Steps far below the spacing of the dtype are lost by nearest rounding and survive on average by stochastic rounding."""
    size, step, count = 4096, 2.0**-14, 256
    plain, stochastic = {"w": torch.ones(size, dtype=dtype)}, {"w": torch.ones(size, dtype=dtype)}
    noise = bz.Noise(5, "rademacher")
    signs = noise.sample("w", size)
    for k in range(count):
        # the same direction at every step, other rounding bits by the seed
        rounding = record(k, distribution, 0, step, True)
        bz.replay_(stochastic, [rounding])
        bz.update_(plain, noise, [2.0**-20])
    assert bool((plain["w"] == 1).all()) and bool((signs.abs() == 1).all())
    expected = (1 - step) ** count
    spread = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    error = (spread * step * count) ** 0.5 / size**0.5
    assert abs(float(stochastic["w"].double().mean()) - expected) < 6 * error


def test_shift_undoes_one_and_applies_the_next() -> None:
    noise = bz.Noise(8, "gaussian")
    w = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    shifted = {"w": w.clone()}
    bz.perturb_(shifted, noise, 1e-3, 4)
    bz.shift_(shifted, noise, [(4, -1e-3), (5, 1e-3)])
    torch.testing.assert_close(shifted["w"], w + 1e-3 * noise.sample("w", 1000, 5), rtol=1e-6, atol=1e-6)


def projections() -> dict[str, Callable[[], Tensor]]:
    delta = {"a": torch.randn(300, 11, generator=torch.Generator().manual_seed(1)), "b": torch.ones(5)}
    return {
        name: lambda n=name: bz.project(delta, bz.Noise(6, n), [0, 3, 4])  # type: ignore[misc]
        for name in DISTRIBUTIONS
    }


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_project_is_the_inner_product(isa: str, distribution: str) -> None:
    found = projections()[distribution]()
    delta = {"a": torch.randn(300, 11, generator=torch.Generator().manual_seed(1)), "b": torch.ones(5)}
    noise = bz.Noise(6, distribution)
    exact = [
        sum(float((d.double() * noise.sample(n, d.shape, k).double()).sum()) for n, d in delta.items())
        for k in (0, 3, 4)
    ]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=1e-12)
