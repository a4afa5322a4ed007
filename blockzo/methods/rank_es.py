"""Evolution strategies on ranks: only the order of the losses counts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from blockzo.methods.base import Scalars, registered
from blockzo.methods.es import ES


@registered
@dataclass(frozen=True)
class RankES(ES):
    """`directions` losses on one side, each replaced by its rank, from -1/2 (the least) to 1/2: s_i = u_i / (eps n) (Salimans et
    al., arXiv 1703.03864, section 2). Outliers and the scale of the loss do not count; equal losses share their mean rank.
    """

    option: ClassVar[str] = "rank-es"
    summary: ClassVar[str] = "one side alone, by the order of the losses (arXiv 1703.03864)"
    linear: ClassVar[bool] = False

    def scalars(self, losses: Sequence[float], eps: Sequence[float]) -> Scalars:
        count, ordered = self.directions, sorted(losses)
        ranks = [(bisect_left(ordered, loss) + bisect_right(ordered, loss) - 1) / 2 for loss in losses]
        shaped = [rank / (count - 1) - 0.5 for rank in ranks]
        return [{k: u / (count * size) for k, u in enumerate(shaped)} for size in eps]
