"""A step whose numbers lie in memory of the device: kernels read them there, so a captured CUDA graph or a compiled function
runs with a new seed and new coefficients without being made again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.cuda import is_current_stream_capturing

from blockzo.noise import DISTRIBUTIONS
from blockzo.ops.steps import Step

LINE_FIELDS = 6
"""int32: seed low, seed high, first term, end of the terms, bits of the factor, 1 where rounding is stochastic."""


@dataclass(frozen=True, eq=False)
class PackedStep:
    """The tables of kernels/moves.py for one step.

    Args:
        line: int32 [6], see `LINE_FIELDS`.
        terms: int32 [K, 2], of each direction its number (as int32 bits) and the bits of its float32 coefficient.
        distribution: "rademacher" or "gaussian".
        stochastic: as in `line`; a kernel is made for it.
    """

    line: Tensor
    terms: Tensor
    distribution: str
    stochastic: bool = False

    def term(self, number: int) -> PackedStep:
        """The step with one of its directions."""
        if len(self.terms) == 1:
            return self
        line = self.line.clone()
        line[3].fill_(1)
        return PackedStep(line, self.terms[number : number + 1], self.distribution, self.stochastic)

    def read(self) -> Step:
        """The numbers, for a backend that takes them by value; waits for the device."""
        low, high, _, _, factor, stochastic = self.line.tolist()
        terms = self.terms.tolist()
        return Step(
            (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32,
            self.distribution,
            tuple(direction & 0xFFFFFFFF for direction, _ in terms),
            tuple(_float(bits) for _, bits in terms),
            _float(factor),
            bool(stochastic),
        )


Given = Step | PackedStep
"""What a GPU kernel can be told."""


def _float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


def pack(
    seed: Tensor,
    directions: Tensor,
    coefficients: Tensor,
    distribution: str,
    factor: Tensor | None = None,
    stochastic: bool = False,
) -> PackedStep:
    """A step of numbers that lie on one device, by a few small operations there; nothing waits and nothing is copied to the host.

    Args:
        seed: int64 [1] with the bits of the uint64.
        directions: int64 [K], values in [0, 2**32 - 1).
        coefficients: float32 [K].
        factor: float32 [1], the weights are multiplied by it in an update; 1 where None.

    Raises:
        ValueError: a shape, dtype or device is another. Values are not looked at.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution is {distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")
    if factor is None:
        factor = torch.ones(1, dtype=torch.float32, device=seed.device)
    count = coefficients.numel()
    expected = {"seed": (seed, torch.int64, 1), "directions": (directions, torch.int64, count)}
    expected |= {"coefficients": (coefficients, torch.float32, count), "factor": (factor, torch.float32, 1)}
    for name, (tensor, dtype, size) in expected.items():
        if tensor.dtype != dtype or tensor.shape != (size,) or tensor.device != seed.device:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; expected {dtype} of shape "
                f"({size},) on {seed.device}"
            )
    # filled on the device: a copy from the host cannot be captured
    line = torch.zeros(LINE_FIELDS, dtype=torch.int32, device=seed.device)
    line[:2] = seed.contiguous().view(torch.int32)
    line[3].fill_(count)
    line[4:5] = factor.contiguous().view(torch.int32)
    line[5].fill_(int(stochastic))
    terms = torch.empty(count, 2, dtype=torch.int32, device=seed.device)
    terms[:, 0] = directions.contiguous().view(torch.int32).view(-1, 2)[:, 0]
    terms[:, 1] = coefficients.contiguous().view(torch.int32)
    return PackedStep(line, terms, distribution, stochastic)


def upload(table: Tensor, device: torch.device) -> Tensor:
    """A small table on the device. The host does not wait: only what follows on the current stream may read it."""
    if device.type == "cuda" and is_current_stream_capturing():
        # the graph would read host memory that is no longer its own
        raise RuntimeError(
            "a table of numbers was made while a CUDA graph is captured; expected one run of the same work before"
        )
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def packed(step: Step, device: torch.device) -> PackedStep:
    """The same for a step whose numbers the host knows, by copies from it.

    Raises:
        ValueError: the noise has a low rank, which kernels that read tables do not make.
    """
    if step.rank:
        raise ValueError(
            f"the noise has rank {step.rank}, which a captured or compiled step does not make; expected noise of full rank "
            "(rank=None), or steps that are neither captured nor compiled"
        )
    count = len(step.directions)
    line = struct.pack("<QiifI", step.seed, 0, count, step.factor, step.stochastic)
    terms = b"".join(struct.pack("<If", d, c) for d, c in zip(step.directions, step.coefficients, strict=True))
    return PackedStep(
        upload(torch.tensor(struct.unpack("<6i", line), dtype=torch.int32), device),
        upload(torch.tensor(struct.unpack(f"<{2 * count}i", terms), dtype=torch.int32).view(count, 2), device),
        step.distribution,
        step.stochastic,
    )


def check_packed(line: Tensor, terms: Tensor, like: Tensor, count: int | None = None) -> None:
    """Raises ValueError unless the tables are what kernels read, beside the weights they move."""
    fits = line.shape == (LINE_FIELDS,) and terms.dim() == 2 and terms.shape[1] == 2
    if count is not None:
        fits = fits and terms.shape[0] == count
    fits = fits and line.dtype == terms.dtype == torch.int32 and line.is_contiguous() and terms.is_contiguous()
    if not fits or line.device != like.device or terms.device != like.device:
        wanted = "K" if count is None else count
        raise ValueError(
            f"step is {line.dtype} {tuple(line.shape)} on {line.device}, terms {terms.dtype} {tuple(terms.shape)} on "
            f"{terms.device}; expected int32 ({LINE_FIELDS},) and ({wanted}, 2), contiguous, on {like.device} "
            "(ops.packed.pack makes them)"
        )
