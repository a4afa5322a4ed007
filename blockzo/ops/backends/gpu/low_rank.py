"""Noise of a low rank on GPUs: matrices and blocks of them are moved in one pass; parts of other forms by the reference.

Experimental: never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockzo.contract import COLUMN_FACTORS, ROW_FACTORS
from blockzo.kernels.low_rank import fill_factors, move_low_rank
from blockzo.noise import low_rank_scale
from blockzo.ops.backends.gpu.tables import (
    DTYPES,
    EXACT,
    on_device,
    programs,
    queue_of,
    signed,
    step_tables,
    table,
    used,
    words,
)
from blockzo.ops.params import Target
from blockzo.ops.steps import Step

BLOCK, ROWS, COLUMNS = 1024, 8, 128
MOST_FACTORS = 1 << 24
"""Numbers of the factors of one pass, 64 MB."""


@dataclass(frozen=True)
class _Block:
    """Rows and columns of a matrix of `width` columns: the first of each, and from one to the next."""

    memory: Tensor
    row: int
    column: int
    row_step: int
    column_step: int

    @staticmethod
    def of(target: Target, width: int) -> _Block | None:
        """None where a target is of another form."""
        tensor, place = target.tensor.detach(), target.place
        if tensor.dim() != 2:
            return None
        if place is None:
            return _Block(tensor, 0, 0, 1, 1)
        (row, column), (apart, along) = divmod(place.start, width), place.strides
        step, rest = divmod(apart, width)
        if (rest and tensor.shape[0] > 1) or column + (tensor.shape[1] - 1) * along >= width:
            return None
        return _Block(tensor, row, column, step, along)


def apply(found: Sequence[Target], steps: Sequence[Step], mode: int, other: Callable[[list[Target]], None]) -> None:
    """All steps on every target; they have one rank and width. `other` moves those that are no blocks of a matrix."""
    rank, width = steps[0].rank, steps[0].width
    for target in found:
        block = _Block.of(target, width)
        if block is None:
            other([target])
        elif block.memory.numel():
            with on_device(block.memory):
                for run in _passes(steps, rank * sum(block.memory.shape)):
                    _launch(block, run, target.stream, mode)


def _passes(steps: Sequence[Step], each: int) -> Iterator[list[Step]]:
    """Steps of one distribution whose factors fit, `each` numbers a direction; a sum is not cut."""
    run: list[Step] = []
    for number, step in enumerate(steps):
        joined = number > 0 and steps[number - 1].joins
        held = each * sum(len(s.directions) for s in (*run, step))
        if run and not joined and (run[-1].distribution != step.distribution or held > MOST_FACTORS):
            yield run
            run = []
        run.append(step)
    if run:
        yield run


def _launch(block: _Block, run: Sequence[Step], stream: int, mode: int) -> None:
    (rows, columns), rank = block.memory.shape, run[0].rank
    device = block.memory.device
    queue = queue_of(device)
    lines, terms = step_tables(run, queue)
    draws = tuple((*words(step.seed), signed(direction)) for step in run for direction in step.directions)
    where = rank, run[0].distribution, stream, device
    a = _factors(draws, ROW_FACTORS, block.row, (rows - 1) * block.row_step + 1, *where)
    b = _factors(draws, COLUMN_FACTORS, block.column, (columns - 1) * block.column_step + 1, *where)
    across = -(-columns // COLUMNS)
    move_low_rank[programs(-(-rows // ROWS), across)](
        block.memory,
        a,
        b,
        lines,
        terms,
        len(run),
        rows,
        columns,
        across,
        *block.memory.stride(),
        a.shape[1],
        b.shape[1],
        block.row_step,
        block.column_step,
        block.row * run[0].width + block.column,
        run[0].width,
        signed(stream),
        low_rank_scale(rank),
        RANK=rank,
        DTYPE=DTYPES[block.memory.dtype],
        MODE=mode,
        STOCHASTIC=any(step.stochastic for step in run),
        JOINS=any(step.joins for step in run),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        **EXACT,
    )
    used(lines, terms)


def _factors(
    draws: tuple[tuple[int, int, int], ...],
    side: int,
    first: int,
    count: int,
    rank: int,
    distribution: str,
    stream: int,
    device: torch.device,
) -> Tensor:
    """float32 [draws, count * rank]."""
    out = torch.empty(max(1, len(draws)), count * rank, dtype=torch.float32, device=device)
    if draws:
        block, lead = divmod(side + first * rank, 8 if distribution == "gaussian" else 128)
        chunks = -(-(count * rank + lead) // BLOCK)
        told = table(draws, queue_of(device))
        fill_factors[programs(len(draws), chunks)](
            out,
            told,
            block,
            lead,
            count * rank,
            chunks,
            signed(stream),
            GAUSSIAN=distribution == "gaussian",
            BLOCK=BLOCK,
            **EXACT,
        )
        used(told)
    return out


def factors(
    first: int,
    count: int,
    side: int,
    rank: int,
    seed: int,
    distribution: str,
    stream: int,
    direction: int,
    device: torch.device | str = "cuda",
) -> Tensor:
    """As `blockzo.noise.factors`."""
    draws = ((*words(seed), signed(direction)),)
    found = torch.device(device)
    with torch.cuda.device(found) if found.type == "cuda" else torch.no_grad():
        return _factors(draws, side, first, count, rank, distribution, stream, found).view(count, rank)
