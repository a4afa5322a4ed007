"""Steps whose numbers lie in memory: the Triton kernels and the registered operations give the bits of the scalar forms."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from blockzo.noise import Noise
from blockzo.ops import steps
from blockzo.ops.backends.gpu import kernels, tables
from blockzo.ops.packed import pack, packed
from blockzo.ops.params import Target
from blockzo.ops.steps import Step, make_step
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, FACTOR, SEED, same_bits, weights
from tests.interpret.packed_cases import OTHER, check_rewritten, rewrite

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
CPU = torch.device("cpu")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves(dtype: torch.dtype, distribution: str) -> None:
    check_rewritten(kernels, distribution, (0, 130), dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_copies_and_rows(distribution: str) -> None:
    steps = [make_step(Noise(seed, distribution), [7], [scale]) for seed, scale in ((SEED, 0.3), (OTHER, -0.25))]
    table = packed(steps[0], CPU)
    weight, rows = weights((9, 200), torch.bfloat16), torch.tensor([8, 0, 3])
    for step in steps:
        rewrite(table, step)
        copies = [torch.empty(9, 200, dtype=torch.bfloat16) for _ in range(2)]
        taken = [torch.empty(3, 200, dtype=torch.bfloat16) for _ in range(2)]
        for numbers, copy, part in zip((table, step), copies, taken, strict=True):
            kernels.perturbed_copy(copy, weight, 5, numbers, 3)
            kernels.perturbed_rows(part, weight, rows, numbers, 3)
        assert same_bits(*copies) and same_bits(*taken)


@pytest.mark.parametrize("path", ["products", "panels"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_linear(distribution: str, path: str) -> None:
    directions = ([3, 4], [0.1, -0.2]), ([9, 2**31], [0.0, 0.3])
    steps = [make_step(Noise(s, distribution), d, c) for s, (d, c) in zip((SEED, OTHER), directions, strict=True)]
    table = packed(steps[0], CPU)
    generator = torch.Generator().manual_seed(1)
    weight, x, bias = (torch.randn(*s, generator=generator).half() for s in ((70, 256), (2, 5, 256), (70,)))
    for step in steps:
        rewrite(table, step)
        found, want = (kernels.perturbed_linear(x, weight, bias, 256, numbers, 9, path) for numbers in (table, step))
        assert torch.equal(found, want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_registered(distribution: str) -> None:
    """On a CPU the numbers are read and given by value."""
    ops = torch.ops.blockzo
    step = make_step(Noise(SEED, distribution), [7, 2], [0.3, -0.1], FACTOR, True)
    table = packed(step, CPU)
    assert table.read() == step and table.term(1).read() == Step(
        SEED, distribution, (2,), step.coefficients[1:], FACTOR, True
    )
    plain = (step.seed - 2**64, distribution, step.directions, step.coefficients)
    found, want = [weights(300, torch.bfloat16)], [weights(300, torch.bfloat16)]
    ops.move_.packed(found, [5], "update", table.line, table.terms, distribution, True)
    ops.move_(want, [5], "update", *plain, FACTOR, True)
    assert same_bits(found[0], want[0])
    x, weight = torch.randn(2, 3, 128), torch.randn(4, 128)
    moved = ops.perturbed_linear.packed(x, weight, None, 0, 5, table.line, table.terms, distribution)
    assert torch.equal(moved, ops.perturbed_linear(x, weight, None, 0, 5, *plain))


def test_what_does_not_fit_is_refused() -> None:
    table = packed(make_step(Noise(1), [7, 2], [0.3, -0.1]), CPU)
    w = torch.zeros(3)
    with pytest.raises(ValueError, match=r"expected int32 \(6,\) and \(1, 2\)"):
        torch.ops.blockzo.move_.packed([w], [5], "perturb", table.line, table.terms, "gaussian", False)
    assert not w.any()
    with pytest.raises(ValueError, match="seed is torch.int32"):
        pack(torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), torch.zeros(1), "gaussian")


def test_tables_are_handed_to_who_captures() -> None:
    table, w = packed(make_step(Noise(1), [7], [0.3]), CPU), torch.zeros(130)
    with tables.held_tables() as kept:
        kernels.perturb_([Target("w", 5, w)], table)
    held: list[Tensor] = kept
    assert {id(table.line), id(table.terms)} <= {id(tensor) for tensor in held} and len(held) == 4


@pytest.mark.parametrize("given", [True, False], ids=["step", "packed"])
def test_tables_of_a_graph_that_a_user_captures_outlive_their_cache(
    given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Launch:
        """A captured launch keeps addresses, not tensors."""

        def __getitem__(self, grid: object) -> object:
            return lambda *tables_and_numbers, **options: read.extend(
                weakref.ref(t) for t in tables_and_numbers if isinstance(t, Tensor)
            )

    read: list[weakref.ref[Tensor]] = []
    monkeypatch.setattr(kernels, "move_kernel", Launch())
    monkeypatch.setattr(tables, "_of_graphs", {})
    for captured in (True, False):
        read.clear()
        monkeypatch.setattr(tables, "is_captured", lambda table, captured=captured: captured)
        w = torch.zeros(130)
        step = make_step(Noise(1), [7], [0.3])
        kernels.replay_([Target("w", 5, w)], [step if given else packed(step, CPU)])
        # a step keeps its own
        del step
        for cache in (tables.table, tables.tensor_tables, steps._made):
            cache.cache_clear()
        gc.collect()
        assert len(read) == 4 and all((one() is not None) is captured for one in read)
