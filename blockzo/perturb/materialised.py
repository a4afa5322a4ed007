"""The plain way that perturbed forwards are measured against: weights that really are moved, and put back.

It costs what the perturbed forward is there to spare, a write of the weights and a copy of what is moved, so it serves checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from blockzo.ops.params import Target
from blockzo.perturb.moves import Move


@contextmanager
def materialised(targets: Mapping[int, Iterable[Target]], moves: Mapping[int, Move], group: int = 0) -> Iterator[int]:
    """Inside the block the parameters of every moved block hold `w + scale * z`, written; after it, the bits they had.

    Whatever reads a weight sees the move: by address, in another thread, in compiled or scripted code. A moved weight of 16 bits
    is rounded to 16 bits. The weights are put back where the block ends by an exception, too.

    Args:
        targets: number of a block -> its parameters.
        moves: number of a block -> how it is moved; blocks that are not named stay as they are.
        group: which direction and scale of the moves.

    Yields:
        Bytes of the copy that is kept meanwhile: of all parameters whose scale is not 0. Where memory is short, pass one block
        at a time.
    """
    held: list[tuple[Tensor, Tensor]] = []
    try:
        for block, move in moves.items():
            if move.scales[group] == 0.0:
                continue
            found = list(targets[block])
            with torch.no_grad():
                held += [(target.tensor, target.tensor.detach().clone()) for target in found]
                move.perturb_(found, group)
        yield sum(saved.numel() * saved.element_size() for _, saved in held)
    finally:
        with torch.no_grad():
            for tensor, saved in held:
                tensor.copy_(saved)
