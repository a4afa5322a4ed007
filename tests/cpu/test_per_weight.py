"""Weights with a scale each: every instruction set against the reference, bit for bit, whatever the scales are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import blockzo as bz
from blockzo.ops.backends import cpu, reference
from blockzo.ops.params import Target
from blockzo.ops.shards import Place
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, ISAS, changes, isa, same_bits, threads, weights
from tests.cpu.test_kernels import fenced, untouched
from tests.cpu.test_layouts import NAMES, views

SIZES = (0, 1, 127, 128, 129, 640, 2047, 2049, 4097)
KINDS = ("float32", "bfloat16", "float16", "mask", "number", "strided", "last dimension")


def scales(shape: tuple[int, ...], kind: str, seed: int = 0) -> Tensor:
    """Zeros of both signs, ones, and what is not finite among them."""
    draw = torch.Generator().manual_seed(seed)
    if kind == "number":
        return torch.tensor(0.37).expand(shape)
    if kind == "last dimension":
        return scales(shape[-1:], "float32", seed).expand(shape)
    if kind == "mask":
        return torch.rand(shape, generator=draw) < 0.5
    if kind == "strided":
        return scales((*shape, 3), "float32", seed)[..., 1]
    values = torch.rand(shape, generator=draw)
    for number, value in enumerate((0.0, -0.0, 1.0, -2.0, float("inf"), float("nan"), 1e-40)):
        values = torch.where(torch.randint(0, 12, shape, generator=draw) == number, torch.tensor(value), values)
    return values.to(getattr(torch, kind))


@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(isa: str, dtype: torch.dtype, distribution: str, name: str) -> None:
    change = changes(distribution)[name]
    given = [(weights(n, dtype, n), scales((n,), KINDS[k % len(KINDS)], n)) for k, n in enumerate(SIZES)]
    pairs = [fenced(values) for values, _ in given]
    want = [values.clone() for values, _ in given]
    for backend, tensors in ((cpu, [inside for inside, _ in pairs]), (reference, want)):
        found = [Target(str(k), k, t, per_weight=s) for k, (t, (_, s)) in enumerate(zip(tensors, given, strict=True))]
        change(backend, [*found, Target("plain", 99, torch.zeros(9, dtype=dtype))])
    for (inside, buffer), expected in zip(pairs, want, strict=True):
        assert same_bits(inside, expected) and untouched(buffer, expected.numel()), expected.numel()


@pytest.mark.parametrize("name", list(changes("gaussian")))
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scale_of_1_changes_nothing_and_one_of_0_keeps_the_bits(
    dtype: torch.dtype, distribution: str, name: str
) -> None:
    change, w = changes(distribution)[name], weights(3000, dtype)
    plain, scaled, still = w.clone(), w.clone(), w.clone()
    mask = torch.arange(3000) % 3 > 0
    change(cpu, [Target("w", 7, plain)])
    change(cpu, [Target("w", 7, scaled, per_weight=mask)])
    change(cpu, [Target("w", 7, still, per_weight=torch.tensor(-0.0).expand(3000))])
    assert same_bits(scaled, torch.where(mask, plain, w)) and same_bits(still, w)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_views(isa: str, kind: str, name: str) -> None:
    for distribution, dtype in zip(DISTRIBUTIONS, DTYPES[:2], strict=True):
        change = changes(distribution)[name]
        for view, _ in views(dtype).values():
            if kind == "last dimension" and not view.dim():
                continue
            own, want = scales(tuple(view.shape), kind), view.clone()
            change(reference, [Target("w", 5, want, per_weight=own)])
            with threads(2):
                change(cpu, [Target("w", 5, view, per_weight=own)])
            assert same_bits(view, want)


@given(
    st.sampled_from(ISAS),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
    st.sampled_from(DTYPES),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(NAMES),
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.integers(0, 2**40),
)
def test_any_part(set_, shape, random, dtype, distribution, name, kind, count, start) -> None:  # type: ignore[no-untyped-def]
    """Parts whose dimensions lie apart in the whole, in any order of memory, with their scales."""
    strides, reach = [], 1
    for size in reversed(shape):
        strides.insert(0, reach * random.randint(1, 3))
        reach = max(1, size) * strides[0]
    order = random.sample(range(len(shape)), len(shape))
    w = weights(tuple(shape[d] for d in order), dtype).permute([order.index(d) for d in range(len(shape))])
    own, want = scales(tuple(shape), kind), w.clone()
    for backend, tensor in ((cpu, w), (reference, want)):
        with isa(set_), threads(count):
            changes(distribution)[name](backend, [Target("w", 5, tensor, Place(start, tuple(strides)), per_weight=own)])
    assert same_bits(w, want)


@pytest.mark.parametrize("name", ["perturb_", "update_ of three", "replay_ of all kinds"])
def test_threads_share_a_list(isa: str, name: str) -> None:
    change, results = changes("gaussian")[name], []
    for count in (1, 3):
        found = [weights(n, DTYPES[k % 3], k) for k, n in enumerate((5, 200_003, 70_000, 131_072, 0))]
        with threads(count):
            change(
                cpu, [Target(str(k), k, t, per_weight=scales((t.numel(),), KINDS[k], k)) for k, t in enumerate(found)]
            )
        results.append(found)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_operations_take_names_modules_numbers_and_parts() -> None:
    net, noise = nn.Linear(40, 30), bz.Noise(5, "gaussian")
    row = torch.rand(40)
    before, per_weight = {n: p.detach().clone() for n, p in net.named_parameters()}, {"weight": row, "module.bias": 0.5}
    bz.perturb_(net, noise, 0.1, 2, per_weight=per_weight)
    z = {n: noise.sample(n, p.shape, 2) for n, p in before.items()}
    assert torch.equal(net.weight, before["weight"] + row * (torch.tensor(0.1) * z["weight"]))
    assert torch.equal(net.bias, before["bias"] + torch.tensor(0.5) * (torch.tensor(0.1) * z["bias"]))
    part = before["weight"][3:20, 7:].clone()
    bz.perturb_({"weight": bz.Shard.at(part, (30, 40), (3, 7))}, noise, 0.1, 2, per_weight={"weight": row[7:]})
    assert torch.equal(part, net.weight[3:20, 7:])
    others = [before["weight"].clone(), torch.ones(7)]
    bz.shift_(others, noise, [(0, 0.1), (1, 0.2)], per_weight={"1": torch.zeros(7)})
    assert not torch.equal(others[0], before["weight"]) and torch.equal(others[1], torch.ones(7))


@pytest.mark.parametrize("turned", [False, True])
def test_scales_in_the_memory_of_the_weights_are_read_first(turned: bool) -> None:
    w, noise = torch.randn(70, 70), bz.Noise(1)
    held = w.t() if turned else w
    want = w - held * (torch.tensor(0.5) * noise.sample("w", w.shape))
    bz.update_({"w": w, "v": torch.zeros(9)}, noise, [0.5], per_weight={"w": held})
    assert torch.equal(w, want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_of_a_low_rank(distribution: str) -> None:
    noises = [bz.Noise(k, distribution, 2) for k in range(3)]
    w, mask, total = torch.randn(20, 30), torch.rand(20, 30) < 0.5, torch.zeros(20, 30)
    for noise, c in zip(noises, (0.1, 0.2, -0.3), strict=True):
        total = total + torch.tensor(c) * noise.sample("w", w.shape)
    want = torch.where(mask, w * 0.5 - total, w)
    bz.update_({"w": w}, noises, [0.1, 0.2, -0.3], decay=0.5, per_weight={"w": mask})
    assert torch.equal(w, want)


def test_a_journal_replays_with_its_mask(tmp_path: Path) -> None:
    base = torch.randn(50, 60).bfloat16()
    mask, live = {"w": base.float().abs() < 0.5}, base.clone()
    with bz.Journal.create(tmp_path / "run.bz", bz.digest({"w": base}), {"w": 0}) as journal:
        for step in range(5):
            update = bz.BlockUpdate((0, 1), (0.1, -0.05), decay=0.01)
            record = bz.Record(step, step, "rademacher", (update,), stochastic_rounding=step % 2 == 0)
            journal.append(record)
            bz.replay_({"w": live}, [record], per_weight=mask)
    rebuilt = base.clone()
    bz.replay_({"w": rebuilt}, bz.Journal.open(tmp_path / "run.bz").records(), per_weight=mask)
    assert same_bits(rebuilt, live)
    assert torch.equal(live[~mask["w"]], base[~mask["w"]]) and bool((live != base)[mask["w"]].any())


def test_backends_without_kernels_leave_it_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PER_WEIGHT", False)
    monkeypatch.setattr(cpu, "perturb_", lambda *_: pytest.fail("the kernel was called"))
    w, noise = torch.zeros(200), bz.Noise(1)
    bz.perturb_({"w": w}, noise, 1.0, per_weight={"w": 0.25})
    assert torch.equal(w, 0.25 * noise.sample("w", 200))


@pytest.mark.parametrize(
    ("per_weight", "text"),
    [
        ({"v": 1.0}, "per_weight has 'v', which is no parameter here; expected names among 'w'"),
        ({"w": float("nan")}, "is nan; expected a finite number"),
        ({"w": torch.ones(4)}, r"has shape \(4,\); expected one that broadcasts to \(5, 3\)"),
        ({"w": torch.ones(5, 3, dtype=torch.int64)}, "is torch.int64, a Tensor; expected a plain tensor of float32"),
        ({"w": torch.ones(5, 3, device="meta")}, "expected a plain tensor"),
    ],
)
def test_what_cannot_be_done_is_refused(per_weight: dict[str, float | Tensor], text: str) -> None:
    w = torch.ones(5, 3)
    for call in (
        lambda: bz.perturb_({"w": w}, bz.Noise(1), 1.0, per_weight=per_weight),
        lambda: bz.update_({"w": w}, [bz.Noise(1)], [1.0], per_weight=per_weight),
        lambda: bz.replay_({"w": w}, [], per_weight=per_weight),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    assert bool((w == 1).all())
