"""perturbed_linear on the CPU: against the reference, exact moves, bits that threads, groups and float modes do not change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blockzo as bz
from blockzo.noise import Noise
from blockzo.ops import panels, perturbed_copy, perturbed_linear
from blockzo.ops.backends import cpu, reference
from blockzo.ops.steps import Step, make_step
from tests.cpu import cases
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, LINEAR_ISAS, SEED, same_bits, threads
from tests.cpu.linear_cases import DIRECTIONS, EPS, SCALES, STREAM, numbers


def agrees(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, start: int, step: Step, narrow: bool) -> bool:
    """Within the rounding of the sums, which grows with K, of the moved weight where it is narrow, and of the result."""
    want = reference.perturbed_linear(x.float(), weight, bias, start, step, STREAM)
    width = weight.shape[1]
    size = x.float().norm(dim=-1, keepdim=True) * (weight.float().norm(dim=1) + width**0.5 * 4.0)
    bound = size * (2.0 * EPS[torch.float32] * max(1, width) ** 0.5 + (EPS[weight.dtype] if narrow else 0.0))
    bound = bound + 2.0 * EPS[x.dtype] * (want.abs() + 1.0) + 1e-6
    return found.dtype == x.dtype and found.shape == want.shape and bool(((found.float() - want).abs() <= bound).all())


SHAPES = [
    (1, 1, 1),
    (1, 1, 7),
    (2, 3, 17),
    (3, 1, 129),
    (7, 7, 127),
    (13, 17, 128),
    (12, 16, 576),
    (49, 33, 257),
    (97, 70, 768),
]


@pytest.mark.parametrize("path", panels.PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference(linear_isa: str, dtype: torch.dtype, path: str) -> None:
    for number, (rows, tokens, width) in enumerate(SHAPES):
        for distribution in DISTRIBUTIONS:
            groups = 1 + number % 8
            step = make_step(Noise(SEED, distribution), DIRECTIONS[:groups], SCALES[:groups])
            weight = numbers(rows, width, dtype=dtype, seed=number)
            x = numbers(
                groups, tokens, width, dtype=torch.float32 if number % 3 == 1 and path != "narrow panels" else dtype
            )
            bias = (None, numbers(rows), numbers(groups, rows, dtype=dtype), numbers(rows, groups).t())[number % 4]
            out = cpu.perturbed_linear(x, weight, bias, 5 * number, step, STREAM, path)
            narrow = path not in ("tiles", "panels")
            assert agrees(out, x, weight, bias, 5 * number, step, narrow), (rows, tokens, width, distribution)


@settings(max_examples=200)
@given(
    st.sampled_from(LINEAR_ISAS),
    st.sampled_from(DTYPES),
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(["tiles", "panels"]),
    st.integers(1, 60),
    st.integers(1, 40),
    st.one_of(st.integers(1, 140), st.integers(380, 400), st.integers(760, 800)),
    st.integers(1, 4),
    st.integers(0, 40),
    st.integers(0, 2**40),
)
def test_any_size(name, dtype, distribution, path, rows, tokens, width, groups, apart, start) -> None:  # type: ignore[no-untyped-def]
    step = make_step(Noise(SEED, distribution), DIRECTIONS[:groups], SCALES[:groups])
    weight = numbers(rows, width + apart, dtype=dtype)[:, apart // 2 : apart // 2 + width]
    x = numbers(groups, tokens, width, dtype=dtype)
    with cases.isa(name):
        out = cpu.perturbed_linear(x, weight, None, start, step, STREAM, path)
    assert agrees(out, x, weight, None, start, step, False)


@pytest.mark.parametrize("width", [4, 8, 12, 16, 20, 380, 388])
def test_rows_that_end_within_a_block_of_noise(linear_isa: str, width: int) -> None:
    """A block of Gaussians is 8 numbers, and a vector of the narrowest sets is 4."""
    step = make_step(Noise(SEED, "gaussian"), [3], [0.5])
    weight, x = numbers(9, width + 8 - width % 8)[:, :width], numbers(1, 3, width)
    assert agrees(cpu.perturbed_linear(x, weight, None, 0, step, STREAM, "tiles"), x, weight, None, 0, step, False)


@pytest.mark.parametrize(
    ("rows", "tokens", "width"), [(128, 1, 64), (300, 16, 130), (1100, 33, 64), (200, 47, 1030), (33, 200, 3072)]
)
def test_many_rows_of_bfloat16(linear_isa: str, rows: int, tokens: int, width: int) -> None:
    """As many as make tables of sums worth while, where the CPU has 16-bit products."""
    step = make_step(Noise(SEED), DIRECTIONS, SCALES)
    weight, x = numbers(rows, width, dtype=torch.bfloat16), numbers(8, tokens, width, dtype=torch.bfloat16)
    bias = numbers(8, rows)
    for start in (0, 12345):
        out = cpu.perturbed_linear(x, weight, bias, start, step, STREAM, "tiles")
        assert agrees(out, x, weight, bias, start, step, False), start
    shared = cpu.perturbed_linear(x[:1].expand(8, -1, -1), weight, bias, 0, step, STREAM, "tiles")
    assert same_bits(shared, cpu.perturbed_linear(x[:1].repeat(8, 1, 1), weight, bias, 0, step, STREAM, "tiles"))


@pytest.mark.parametrize("path", ["tiles", "panels"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_identity_gives_the_moved_weight_to_the_bit(
    linear_isa: str, dtype: torch.dtype, distribution: str, path: str
) -> None:
    for rows, width, start in [
        (5, 3, 1),
        (13, 129, 128),
        (30, 400, 10**12 + 77),
        (12, 777, 2**35 - 3003),
        (30, 64, 2**39 - 640),
    ]:
        weight = numbers(rows, width, dtype=dtype)
        step = make_step(Noise(SEED, distribution), [3, 3, 8, 1], [0.3, -0.3, 1e-40, 0.0])
        eye = torch.eye(width).expand(4, width, width)
        out = cpu.perturbed_linear(eye, weight, None, start, step, STREAM, path)
        for group, (direction, scale) in enumerate(zip(step.directions, step.coefficients, strict=True)):
            want = torch.empty(rows, width)
            perturbed_copy(weight, Noise(SEED, distribution), STREAM, scale, direction, start, out=want)
            assert same_bits(out[group].t().contiguous(), want + 0.0), (rows, width, scale)


def test_a_slice_has_the_noise_of_its_place(linear_isa: str) -> None:
    whole = numbers(60, 500)
    step = make_step(Noise(SEED, "gaussian"), [2], [0.1])
    x = numbers(1, 9, 500)

    def part(rows: slice, columns: slice, start: int) -> Tensor:
        return cpu.perturbed_linear(x[..., columns], whole[rows, columns], None, start, step, STREAM, "tiles")

    every = slice(None)
    everything = part(every, every, 0)
    assert same_bits(part(slice(7, 31), every, 7 * 500), everything[..., 7:31].contiguous())
    left, right = part(every, slice(0, 130), 0), part(every, slice(130, 500), 130)
    assert torch.allclose(left + right, everything, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_threads_groups_or_neighbours(linear_isa: str, dtype: torch.dtype) -> None:
    """With the fused kernel; panels leave the sums to torch, which promises none of this."""
    weight, bias = numbers(300, 700, dtype=dtype), numbers(8, 300)
    x = numbers(8, 37, 700, dtype=dtype)
    step = make_step(Noise(SEED), DIRECTIONS, SCALES)
    together = cpu.perturbed_linear(x, weight, bias, 0, step, STREAM, "tiles")
    for count in (1, 2, 3):
        with threads(count):
            assert same_bits(cpu.perturbed_linear(x, weight, bias, 0, step, STREAM, "tiles"), together)
    for group in range(8):
        one = make_step(Noise(SEED), DIRECTIONS[group : group + 1], SCALES[group : group + 1])
        part = slice(group, group + 1)
        found = cpu.perturbed_linear(x[part], weight, bias[part], 0, one, STREAM, "tiles")
        assert same_bits(found, together[part])
        assert same_bits(cpu.perturbed_linear(x[part, 5:9], weight, bias[part], 0, one, STREAM, "tiles"), found[:, 5:9])


def test_many_tokens_go_in_rounds(linear_isa: str) -> None:
    x, weight = numbers(2, 700, 40), numbers(30, 40)
    step = make_step(Noise(SEED), [1, 1], [0.1, -0.1])
    out = cpu.perturbed_linear(x, weight, None, 0, step, STREAM, "tiles")
    for part in (slice(0, 3), slice(500, 530), slice(699, 700)):
        assert same_bits(
            cpu.perturbed_linear(x[:, part], weight, None, 0, step, STREAM, "tiles"), out[:, part].contiguous()
        )


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("groups", "tokens"), [(40, 32), (9, 150), (3, 1030)])
def test_many_groups_go_in_batches(linear_isa: str, distribution: str, groups: int, tokens: int) -> None:
    """Directions of their own, some shared, with more tokens than are multiplied at once."""
    x, weight, bias = numbers(groups, tokens, 48), numbers(30, 48), numbers(groups, 30)
    step = make_step(
        Noise(SEED, distribution), [g % 37 for g in range(groups)], [0.1 if g % 2 else -0.1 for g in range(groups)]
    )
    out = cpu.perturbed_linear(x, weight, bias, 8, step, STREAM, "tiles")
    for group in {0, 1, groups // 2, groups - 1}:
        part = slice(group, group + 1)
        one = make_step(Noise(SEED, distribution), step.directions[part], step.coefficients[part])
        alone = cpu.perturbed_linear(x[part], weight, bias[part], 8, one, STREAM, "tiles")
        assert same_bits(out[part].contiguous(), alone), group


def test_sets_that_fuse_agree_to_the_bit() -> None:
    x, weight = numbers(2, 19, 400), numbers(50, 400)
    step = make_step(Noise(SEED, "gaussian"), [1, 1], [0.1, -0.1])
    outs = []
    for name in LINEAR_ISAS:
        if name != "baseline":
            with cases.isa(name):
                outs.append(cpu.perturbed_linear(x, weight, None, 0, step, STREAM, "tiles"))
    assert all(same_bits(out, outs[0]) for out in outs)


@pytest.mark.parametrize("path", panels.PATHS)
def test_groups_that_share_x_read_it_where_it_is(linear_isa: str, path: str) -> None:
    x, weight = numbers(21, 300), numbers(40, 300)
    step = make_step(Noise(SEED), DIRECTIONS, SCALES)
    shared = cpu.perturbed_linear(x.expand(8, 21, 300), weight, None, 0, step, STREAM, path)
    assert same_bits(shared, cpu.perturbed_linear(x.repeat(8, 1, 1), weight, None, 0, step, STREAM, path))
    seen = []
    original = cpu.perturbed_linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "perturbed_linear", lambda x, *rest, **how: seen.append(x) or original(x, *rest, **how))
        out = perturbed_linear(
            x.view(3, 7, 300).expand(8, 3, 7, 300), weight, None, Noise(SEED), STREAM, DIRECTIONS, SCALES
        )
    assert out.shape == (8, 3, 7, 40) and seen[0].data_ptr() == x.data_ptr() and seen[0].stride(0) == 0


def test_strided_x_and_no_gradient(linear_isa: str) -> None:
    weight = torch.nn.Parameter(numbers(20, 30))
    x = numbers(30, 8).t().requires_grad_()
    out = perturbed_linear(x, weight, None, Noise(SEED), STREAM, [0, 1], [0.1, 0.1])
    want = perturbed_linear(x.contiguous(), weight, None, Noise(SEED), STREAM, [0, 1], [0.1, 0.1])
    assert same_bits(out, want) and not out.requires_grad


def test_weights_are_as_they_were_and_float_modes_do_not_matter(linear_isa: str) -> None:
    weight = numbers(64, 300) * 1e-40
    before = bz.digest({"w": weight})
    step = make_step(Noise(SEED), [1, 1, 1], [1e-40, -1e-40, 0.0])
    x = torch.eye(300).expand(3, 300, 300)
    want = cpu.perturbed_linear(x, weight, None, 0, step, STREAM, "tiles")
    assert bool((want != 0).any())
    torch.set_flush_denormal(True)
    try:
        found = cpu.perturbed_linear(x, weight, None, 0, step, STREAM, "tiles")
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(found, want)
    assert bz.digest({"w": weight}) == before


def test_infinities_and_nans_come_through(linear_isa: str) -> None:
    weight, x = numbers(14, 40), numbers(1, 18, 40, dtype=torch.bfloat16)
    weight[3, 5] = float("inf")
    weight.view(torch.int32)[4, 6] = 0x7FFFFFFF  # a NaN whose bits a careless rounding carries into the exponent
    x[0, 2, 7] = float("-inf")
    out = cpu.perturbed_linear(x, weight, None, 0, make_step(Noise(1), [0], [0.1]), STREAM, "tiles")[0].float()
    assert bool(out[:, 4].isnan().all()) and bool((out[:2, 3].abs() == float("inf")).all())
    assert not bool(out[2].isfinite().any())


@pytest.mark.parametrize(
    ("groups", "tokens", "rows", "width"), [(1, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (1, 0, 0, 0)]
)
def test_empty_sizes(linear_isa: str, groups: int, tokens: int, rows: int, width: int) -> None:
    bias = numbers(rows)
    x, weight = numbers(groups, tokens, width), numbers(rows, width)
    out = perturbed_linear(x, weight, bias, Noise(1), STREAM, list(range(groups)), [0.1] * groups)
    assert same_bits(out, bias.expand(groups, tokens, rows).contiguous())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": numbers(2, 3, 5)}, "x has shape"),
        ({"x": numbers(1, 3, 4)}, "3 rows for 2 directions"),
        ({"x": numbers(2, 3, 4).double()}, "x is torch.float64"),
        ({"weight": numbers(4, 6).t()}, "unit stride"),
        ({"weight": numbers(24)}, "unit stride"),
        ({"weight": numbers(6, 4).int()}, "torch.int32"),
        ({"bias": numbers(5)}, "bias has shape"),
        ({"bias": numbers(6).double()}, "bias is torch.float64"),
        ({"directions": [0]}, "2 coefficients for 1 directions"),
        ({"directions": [0, 2**32 - 1]}, "direction is"),
        ({"scales": [0.1, float("nan")]}, "nan"),
        ({"start": -1}, "start is -1"),
        ({"start": 2**63 - 10}, "start is"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    given = {
        "x": numbers(2, 3, 4),
        "weight": numbers(6, 4),
        "bias": None,
        "noise": Noise(1),
        "stream": 5,
        "directions": [0, 1],
        "scales": [0.1, 0.1],
    }
    with pytest.raises(ValueError, match=message):
        perturbed_linear(**{**given, **change})  # type: ignore[arg-type]


def test_the_kernel_is_taken_where_torch_multiplies_with_narrower_instructions() -> None:
    weight, bf16 = torch.empty(8, 8), torch.empty(8, 8, dtype=torch.bfloat16)

    def path(tokens: int, held: Tensor, isa: str, vendor: str) -> str:
        return panels.choose_path(torch.empty(1, tokens, 8), held, 0, isa, vendor)

    mkl = torch.backends.mkl.is_available()
    assert path(383, weight, "avx512", "intel") == "tiles" and path(384, weight, "avx512", "intel") == "panels"
    assert path(1024, weight, "avx512", "amd") == ("tiles" if mkl else "panels")
    assert path(1024, weight, "avx2", "amd") == "panels"
    assert path(1024, bf16, "avx512", "intel") == "tiles" and path(1536, bf16, "avx512", "intel") == "panels"


def test_a_matrix_unit_is_taken_for_whole_steps_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "multiplies", lambda dtype: True)

    def path(tokens: int, width: int = 64, start: int = 0, isa: str = "amx", apart: int = 0) -> str:
        weight = torch.empty(8, width + apart, dtype=torch.bfloat16)[:, :width]
        x = torch.empty(1, tokens, width, dtype=torch.bfloat16)
        return panels.choose_path(x, weight, start, isa, "intel")

    assert path(47) == "tiles" and path(48) == path(384) == "narrow tiles"
    for other in (path(385), path(48, 48), path(48, start=8), path(48, isa="avx2"), path(48, apart=32)):
        assert other == "narrow panels"


def test_pairs_of_arm_are_taken_where_the_user_chose_to_round() -> None:
    def path(isa: str, moved: str, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> str:
        weight, x = torch.empty(8, width, dtype=dtype), torch.empty(1, 2048, width, dtype=dtype)
        return panels.choose_path(x, weight, 7, isa, "other", moved)

    assert path("neon-bf16", "rounded") == "narrow tiles"
    for moved in ("auto", "float32"):
        assert path("neon-bf16", moved) == path("neon", moved) != "narrow tiles"
    others = (
        path("neon", "rounded"),
        path("neon-bf16", "rounded", 63),
        path("neon-bf16", "rounded", 64, torch.float16),
    )
    assert others == ("rounded panels",) * 3


def test_pairs_are_taken_for_some_tokens_by_rows_of_whole_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "multiplies", lambda dtype: True)

    def path(tokens: int, width: int = 64, dtype: torch.dtype = torch.bfloat16, moved: str = "auto") -> str:
        weight, x = torch.empty(8, width, dtype=dtype), torch.empty(1, tokens, width, dtype=dtype)
        return panels.choose_path(x, weight, 7, "avx512", "amd", moved)

    first, last = panels.PAIR_TOKENS
    assert path(first - 1) == "tiles" and path(first) == path(last) == path(1, moved="rounded") == "narrow tiles"
    assert path(last + 1) == path(last + 1, moved="rounded") == "narrow panels"
    assert path(47, 63) == path(47, dtype=torch.float16) == "tiles"
    assert path(48, 63) == path(48, dtype=torch.float16) == "narrow panels"
