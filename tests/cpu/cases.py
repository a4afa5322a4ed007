"""One list of operations for every test of the kernels: each runs on a backend and gives the tensors that it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from blockzo import _native
from blockzo.noise import Noise
from blockzo.ops.backends import reference
from blockzo.ops.params import Target
from blockzo.ops.steps import Step, joined_steps, make_step

LINEAR_ISAS: list[str] = _native.available()
ISAS = [name for name in LINEAR_ISAS if name not in ("amx", "neon-bf16")]
"""Products of bfloat16 serve linear layers alone: all other kernels of these sets are those of avx512 and of neon."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DISTRIBUTIONS = ("rademacher", "gaussian")
SEED = 0xFEDCBA9876543210
FACTOR = 0.99609375
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Change = Callable[[ModuleType, list[Target]], None]


@contextmanager
def isa(name: str) -> Iterator[None]:
    before = _native.chosen()
    _native.choose(name)
    try:
        yield
    finally:
        _native.choose(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights(shape: int | tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Values over many powers of two, with zeros of both signs, subnormals, infinities and NaNs among them."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float32)
    w = w * 2.0 ** torch.randint(-26, 5, w.shape, generator=generator)
    kind = torch.randint(0, 64, w.shape, generator=generator)
    odd = (0.0, -0.0, 1e-40, -6e-8, float("inf"), float("-inf"), float("nan"), 65519.0, 3.3e38, -(2.0**-14))
    for number, value in enumerate(odd):
        w = torch.where(kind == number, torch.tensor(value), w)
    return w.to(dtype)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equal to the bit; the payload and sign of a NaN are not part of the contract."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    integer = INTEGERS[found.element_size()]
    equal = found.contiguous().view(-1).view(integer) == expected.contiguous().view(-1).view(integer)
    nan = torch.isnan(found).view(-1) if found.is_contiguous() else torch.isnan(found).reshape(-1)
    return bool((equal | (nan & torch.isnan(expected).reshape(-1))).all())


def steps_of(distribution: str, number: int, stochastic: bool = False) -> list[Step]:
    """Records of all kinds: one and several directions, none, with and without decay, coefficients that vanish."""
    found = []
    for k in range(number):
        directions = ([k], [0, k + 1, 2**32 - 2], [], [k], [k, k])[k % 5 if k % 3 else 0]
        coefficients = [(0.3, -1e-3, 7e-2, 0.0, -0.0)[(k + j) % 5] for j in range(len(directions))]
        noise = Noise((SEED + k) % 2**64, distribution)
        found.append(
            make_step(noise, directions, coefficients, FACTOR if k % 4 == 3 else 1.0, stochastic and k % 2 == 0)
        )
    return found


def changes(distribution: str) -> dict[str, Change]:
    """Name -> an operation that moves targets in place."""
    noise = Noise(SEED, distribution)
    other = Noise(1, distribution)

    def perturb(coefficient: float) -> Change:
        return lambda backend, found: backend.perturb_(found, make_step(noise, [3], [coefficient]))

    def shift(directions: list[int], coefficients: list[float]) -> Change:
        return lambda backend, found: backend.shift_(found, make_step(noise, directions, coefficients))

    def replay(steps: list[Step]) -> Change:
        return lambda backend, found: backend.replay_(found, steps)

    def seeds(number: int, stochastic: bool = False) -> list[Step]:
        """One update of so many seeds, some with several directions, coefficients of 0 among them."""
        noises = [Noise((SEED - k // 2 if k % 7 == 0 else k) % 2**64, distribution) for k in range(number)]
        numbers = [(0.3, -1e-3, 7e-2, 0.0, -0.0)[k % 5] for k in range(number)]
        return joined_steps(noises, [k % 3 for k in range(number)], numbers, FACTOR, stochastic)

    simple = [make_step(Noise(k, distribution), [k], [1e-2 * (-1) ** k]) for k in range(37)]
    return {
        "perturb_": perturb(0.3),
        "perturb_ by 0": perturb(0.0),
        "perturb_ by -0": perturb(-0.0),
        "perturb_ by a subnormal": perturb(1e-40),
        "perturb_ past the largest": perturb(3e38),
        "shift_ of one": shift([3], [0.3]),
        "shift_ of one by 0": shift([3], [0.0]),
        "shift_ of none": shift([], []),
        "shift_ of three": shift([0, 5, 2**32 - 2], [0.3, -1e-3, 0.7]),
        "shift_ there and back": shift([4, 4], [0.3, -0.3]),
        "update_ of one": replay([make_step(noise, [3], [0.3])]),
        "update_ of one by 0": replay([make_step(noise, [3], [0.0])]),
        "update_ of one by -0": replay([make_step(noise, [3], [-0.0])]),
        "update_ with decay": replay([make_step(noise, [3], [0.3], FACTOR)]),
        "update_ of none": replay([make_step(noise, [], [])]),
        "update_ of three": replay([make_step(noise, [0, 5, 9], [0.3, -1e-3, 0.7], FACTOR)]),
        "update_ stochastic": replay([make_step(noise, [3], [1e-3], 1.0, True)]),
        "update_ of seeds": replay(seeds(21)),
        "update_ of two seeds": replay(seeds(2, stochastic=True)),
        "replay_ with updates of seeds": replay([*simple[:3], *seeds(5), *simple[3:5], *seeds(18, True), *seeds(1)]),
        "replay_ of plain steps": replay(simple),
        "replay_ of decayed steps": replay([make_step(other, [k], [1e-2], FACTOR) for k in range(5)]),
        "replay_ of all kinds": replay(steps_of(distribution, 23)),
        "replay_ stochastic": replay(steps_of(distribution, 11, stochastic=True)),
    }


def expected(change: Change, tensors: list[Tensor], streams: list[int]) -> list[Tensor]:
    """What the reference makes of copies of the tensors, contiguous."""
    copies = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
    change(reference, [Target(str(k), stream, t) for k, (stream, t) in enumerate(zip(streams, copies, strict=True))])
    return copies
