"""The cases that csrc/tests/vectors.cpp checks, with results from the reference."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blockzo.cli import selftest
from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.params import Target
from blockzo.ops.steps import Step, joined_steps, make_step
from tests.packaging import bfdot

SEED, STREAM = 0xFEDCBA9876543210, 0x89ABCDEF
SIZES = (1, 5, 127, 300, 4099)


def float_bits(value: float) -> str:
    return struct.pack(">f", value).hex()


def bits(tensor: Tensor) -> list[str]:
    wide = tensor.element_size() == 4
    values = tensor.contiguous().view(torch.int32 if wide else torch.int16).flatten().tolist()
    return [f"{value & (0xFFFFFFFF if wide else 0xFFFF):x}" for value in values]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def step_text(step: Step) -> str:
    terms = " ".join(f"{d} {float_bits(c)}" for d, c in zip(step.directions, step.coefficients, strict=True))
    form = f":{step.rank}:{step.width}" if step.rank else ""
    head = f"{step.seed} {step.distribution}{form} {float_bits(step.factor)} {step.stochastic | step.joins << 1}"
    return f"{head} {len(step.directions)} {terms}"


def steps_text(steps: list[Step]) -> str:
    return " ".join([str(len(steps)), *map(step_text, steps)])


def tensor_text(tensor: Tensor, memory: Tensor) -> str:
    layout = [tensor.dim(), *tensor.shape, *tensor.stride(), memory.numel()]
    return " ".join([name_of(tensor.dtype), str(STREAM), *map(str, layout), *bits(memory)])


def weights(count: int, dtype: torch.dtype) -> Tensor:
    """Mixed scales down to subnormals of float16, zeros and both signs."""
    index = torch.arange(count)
    return ((index * 37 % 101 - 50).to(torch.float32) / 32.0 ** (index % 5)).to(dtype)


def noise_cases() -> Iterator[str]:
    for case in selftest.vectors():
        head = f"{case['distribution']} {case['stream']} {case['seed']} {case['direction']} {case['start']}"
        yield " ".join(["noise", head, str(len(case["bits"])), *case["bits"]])
    for distribution in ("rademacher", "gaussian"):
        for start, count in ((0, 1500), (3, 700), ((1 << 32) - 9, 300), ((1 << 38) + 5, 200), ((1 << 62) - 1, 150)):
            values = Noise(SEED, distribution).sample(STREAM, count, 7, start)
            yield " ".join([f"noise {distribution} {STREAM} {SEED} 7 {start} {count}", *bits(values)])


def operation_cases() -> Iterator[str]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for distribution in ("rademacher", "gaussian"):
            noise, other = Noise(SEED, distribution), Noise(SEED ^ 0xFF, distribution)
            one = make_step(noise, [2], [0.37])
            several = make_step(noise, [0, 9, 1 << 31], [0.3, -1e-3, 0.71])
            decayed = make_step(other, [1], [1e-2], factor=0.99609375)
            stochastic = make_step(other, [4, 1], [1e-3, 2e-4], factor=0.9990234375, stochastic=True)
            members = [Noise(SEED + k, distribution) for k in range(11)]
            joined = joined_steps(
                members, [k % 4 for k in range(11)], [0.1 - 0.02 * k for k in range(11)], 0.9990234375
            )
            for size in SIZES:
                memory = weights(size, dtype)
                yield from moved_cases(memory, memory, one, several, [several, decayed, *joined, stochastic, one])
            memory = weights(35 * 13, dtype)
            yield from moved_cases(memory.view(35, 13).t(), memory, one, several, [stochastic, several])
            yield from rows_and_copies(dtype, one)
            yield from low_rank_cases(dtype, one, several, [several, decayed, stochastic, one])


def low_rank_cases(dtype: torch.dtype, one: Step, several: Step, steps: list[Step]) -> Iterator[str]:
    memory = weights(35 * 77, dtype)
    for view in (memory.view(35, 77), memory.view(77, 35).t()):
        own, sums, *others = (replace(step, rank=3, width=77) for step in (one, several, *steps))
        yield from moved_cases(view, memory, own, sums, others)
    yield from rows_and_copies(dtype, replace(one, rank=3, width=77), (0, 131))


def moved_cases(tensor: Tensor, memory: Tensor, one: Step, several: Step, steps: list[Step]) -> Iterator[str]:
    """`tensor` is a view of the whole of `memory`."""
    text = tensor_text(tensor, memory)
    for kind, used in (("perturb", [one]), ("shift", [several]), ("update", steps)):
        after = memory.clone()
        view = after.as_strided(tensor.shape, tensor.stride())
        target = [Target("w", STREAM, view)]
        if kind == "update":
            reference.replay_(target, used)
        else:
            getattr(reference, f"{kind}_")(target, used[0])
        yield " ".join([kind, text, steps_text(used), *bits(after)])
    sums = reference.project([Target("w", STREAM, tensor)], several)
    yield " ".join(["project", text, steps_text([several]), *(struct.pack(">d", value).hex() for value in sums)])


def rows_and_copies(dtype: torch.dtype, step: Step, starts: Sequence[int] = (0, 131, (1 << 33) - 3)) -> Iterator[str]:
    memory = weights(5 * 77, dtype)
    weight, chosen = memory.view(5, 77), torch.tensor([4, 0, 0, 2, 3, 4])
    out = torch.empty(6, 77, dtype=dtype)
    reference.perturbed_rows(out, weight, chosen, step, STREAM)
    listed = " ".join(map(str, [chosen.numel(), *chosen.tolist()]))
    yield " ".join(["rows", tensor_text(weight, memory), listed, steps_text([step]), *bits(out)])
    copied = torch.empty_like(memory)
    for start in starts:
        reference.perturbed_copy(copied, memory, start, step, STREAM)
        yield " ".join(["copy", tensor_text(memory, memory), str(start), steps_text([step]), *bits(copied)])


def linear_cases() -> Iterator[str]:
    """Products whose sums are exact in any order, with moves that are rounded to the weight's dtype and moves that are not."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        half = 2.0**-12 if dtype == torch.float16 else 2.0**-9
        step = make_step(Noise(SEED), [2, 2, 7], [1.5 * half, -1.5 * half, 0.75 * half])
        for tokens, rows, width, beside in ((3, 130, 64, 0), (18, 130, 64, 0), (5, 13, 40, 3), (1, 20, 96, 0)):
            # multiples of 1/8 up to 1, whole numbers up to 3
            weight = (torch.arange(rows * (width + beside)) * 37 % 17 - 8).view(rows, -1) / 8
            x = (torch.arange(3 * tokens * width) * 29 % 7 - 3).view(3, tokens, width)
            bias = (torch.arange(3 * rows) % 5 - 2).view(3, -1).to(dtype)
            yield from products(x.to(dtype), weight.to(dtype), bias, width, step)
        # each token reads one column, so that Gaussian noise makes no sums
        x, weight = torch.eye(40).expand(3, 40, 40), weights(13 * 43, dtype).view(13, 43)
        step = make_step(Noise(SEED, "gaussian"), [2, 2, 7], [1.5 * half, -1.5 * half, 0.0])
        for own in (torch.float32, torch.bfloat16) if dtype == torch.bfloat16 else (torch.float32,):
            yield from products(x.to(own), weight, torch.zeros(3, 13, dtype=dtype), 40, step)


def products(x: Tensor, memory: Tensor, bias: Tensor, width: int, step: Step, start: int = 128) -> Iterator[str]:
    """By the first columns of `memory` [rows, columns]."""
    moved = moved_weights(memory, width, step, start)
    for narrow in (False, True) if memory.dtype != torch.float32 else (False,):
        read = moved.to(memory.dtype) if narrow else moved
        out = x.double() @ read.double().transpose(1, 2) + bias.double().unsqueeze(1)
        assert torch.equal(out, out.float().double())
        yield product_text("linear", x, x, memory, bias, width, start, narrow, step, out.float().to(x.dtype))


def moved_weights(memory: Tensor, width: int, step: Step, start: int) -> Tensor:
    """Of each group, in float32."""
    noise = Noise(step.seed, step.distribution)
    z = [noise.sample(STREAM, memory.numel(), d, start).view(memory.shape) for d in step.directions]
    return torch.stack([(memory.float() + c * own)[:, :width] for c, own in zip(step.coefficients, z, strict=True)])


def product_text(
    kind: str,
    x: Tensor,
    held: Tensor,
    memory: Tensor,
    bias: Tensor,
    width: int,
    start: int,
    narrow: bool,
    step: Step,
    out: Tensor,
) -> str:
    """`x` is a view of the whole of `held`."""
    tensors = [tensor_text(x, held), tensor_text(memory[:, :width], memory), tensor_text(bias, bias)]
    return " ".join([kind, *tensors, str(start), str(int(narrow)), steps_text([step]), *bits(out)])


def pair_cases() -> Iterator[str]:
    """Rounded weights by pairs of bfloat16, to the bit of what BFDOT gives. Two groups keep their weights, one by a move that
    rounding undoes: there halves cancel, and the rounding of the sums is all there is to see.
    """
    generator = torch.Generator().manual_seed(0)

    def halves(sign: int, *shape: int) -> Tensor:
        half = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator)
        half = half * 2.0 ** torch.randint(-8, 4, half.shape, generator=generator)
        return torch.cat([half, sign * half], -1).to(torch.bfloat16)

    shapes = ((1, 1, 2, 0), (3, 130, 64, 0), (4, 12, 256, 0), (5, 13, 34, 3), (7, 97, 258, 0), (18, 20, 1290, 4))
    for number, (tokens, rows, width, beside) in enumerate((*shapes, (400, 5, 36, 0), (1100, 3, 32, 1))):
        for distribution in ("rademacher", "gaussian"):
            step = make_step(Noise(SEED, distribution), [2, 2, 7, 9], [0.5, -0.25, 1e-12, 0.0])
            shared = number % 3 == 1
            held = halves(-1, 1 if shared else 4, tokens, width)
            memory = torch.cat([halves(1, rows, width), halves(1, rows, 2 * beside)], -1)
            bias = (torch.zeros(4, rows), (torch.arange(4 * rows) % 5 - 2).view(4, -1).to(torch.bfloat16))[number % 2]
            yield pair_case(held.expand(4, -1, -1), held, memory, bias, width, step, (128, 77)[number % 2])
    # subnormal weights, tokens, products and a subnormal sum
    held = torch.tensor([[[1024.0, 2.0**-70, 2.0**-130, 1.0]]], dtype=torch.bfloat16)
    memory = torch.tensor([[2.0**-130, 0, 0, 0], [0, 2.0**-70, 0, 0], [0, 0, 1024.0, 0]], dtype=torch.bfloat16)
    memory = torch.cat([memory, torch.tensor([[0, 0, 0, 2.0**-126], [-(2.0**-136), 0, 0, 2.0**-126]])]).bfloat16()
    yield pair_case(held, held, memory, torch.zeros(1, 5), 4, make_step(Noise(SEED), [2], [0.0]), 128)


def pair_case(x: Tensor, held: Tensor, memory: Tensor, bias: Tensor, width: int, step: Step, start: int) -> str:
    read = moved_weights(memory, width, step, start).bfloat16()
    sums = torch.stack([bfdot.chain(own, weight) for own, weight in zip(x, read, strict=True)])
    want = x.double() @ read.double().transpose(1, 2)
    size = x.double().norm(dim=-1, keepdim=True) * read.double().norm(dim=2).unsqueeze(1)
    assert bool(((sums - want).abs() <= 2.0**-20 * size + 2.0**-110).all())
    out = (sums + bias.float().unsqueeze(1)).bfloat16()
    return product_text("linear@neon-bf16", x, held, memory, bias, width, start, True, step, out)


def all_cases() -> list[str]:
    return [*noise_cases(), *operation_cases(), *linear_cases(), *pair_cases()]
