"""One owner, several devices: ranks of torch.distributed share the evaluations of a step; only losses are exchanged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from blockzo import ops
from blockzo.journal.file import Journal
from blockzo.journal.record import Record
from blockzo.methods.auto import Auto, StepPlan
from blockzo.methods.shares import share, spans
from blockzo.methods.tree import EvaluationTree
from blockzo.ops.distributed import is_dtensor, keep_sharded
from blockzo.ops.params import named_tensors, targets
from blockzo.optim.evaluation import Evaluation
from blockzo.optim.micro_batches import Part, Sum
from blockzo.optim.ranks import Ranks
from blockzo.optim.shared_examples import SharedExamples
from blockzo.optim.zo import ZO, Run
from blockzo.perturb.losses import LossFunction, as_tensor, evaluation_mode

SPLITS = ("directions", "batch")


class DistributedZO(ZO):
    """`ZO` over the ranks of a process group: every rank holds the model, does a share of each step, and applies the same record.

    All ranks make it, and call `step` and `estimate`, at the same time. A step exchanges one float64 vector (losses and a few
    numbers); an error on one rank is raised by all of them, and no weight has moved. docs/distributed.md says when the result has
    the bits of a single process.

    Args:
        model: as of `ZO`; alike on every rank. With split "batch" and `evaluate="in_place"` it may be sharded over the ranks
            (fully_shard, tensor parallelism).
        loss_fn: as of `ZO`.
        split: "directions": every rank takes leaves of the evaluation tree, with the same batch for all;
            "batch": every rank evaluates the whole tree on its own rows, and losses are averaged over rows. A rank without
            rows passes None, but not with a sharded model, whose forwards all ranks run together.
        costs: split "directions": of running each block once, in any unit, to cut fair shares; all blocks alike where None.
        group: process group; the default one where None.
        options: those of `ZO`, alike on every rank. `method` may not be "auto". `journal` is given on rank 0 alone; what it holds
            already is replayed by all. `rows_of` serves split "batch" and micro-batches.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: on every rank, where settings do not fit or ranks differ.
    """

    _joined_ranks = True

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None = None,
        *,
        split: str = "directions",
        costs: Sequence[float] | None = None,
        group: Any = None,
        **options: Any,
    ) -> None:
        self.ranks = Ranks(group)
        self.split = split

        def begin() -> None:
            method = options.get("method")
            if method == "auto" or isinstance(method, Auto):
                raise ValueError('method "auto" measures one machine; expected a fixed method, such as blockzo.SPZO()')
            if split not in SPLITS:
                raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
            in_place = options.get("evaluate", "perturbed") == "in_place"
            if in_place and split != "batch":
                raise ValueError(
                    'evaluate is "in_place" with split="directions"; ranks that move their weights along different directions do '
                    'not restore them alike: expected split="batch"'
                )
            self._sharded = in_place
            if self.ranks.rank and options.get("journal") is not None:
                raise ValueError("rank 0 alone writes the journal; expected journal=None on other ranks")
            super(DistributedZO, self).__init__(model, loss_fn, **options)
            if costs is not None and (len(costs) != len(self.blocks) or not all(0 < c < math.inf for c in costs)):
                raise ValueError(f"costs is {list(costs)}; expected {len(self.blocks)} positive numbers, one a block")

        self.ranks.together(begin)
        assert not isinstance(self.method, Auto)
        self._journaled = False
        self._follow(None)
        self.tree = self.method.tree(len(self.blocks))
        self.spread = any(target.spread is not None for target in targets(model))
        if self.spread:
            keep_sharded(model)
        self.spans = spans(self.tree, self.ranks.count, costs or [1.0] * len(self.blocks))
        self._same_loss = False
        self.ranks.same(
            {
                "the digest of the weights": ops.digest(model),
                "the digest of the buffers": ops.digest(dict(model.named_buffers())),
                "the layout": self.layout,
                "the method": self.method.describe(),
                "eps": self.eps,
                "distribution": self.distributions,
                "rank": self.rank,
                "seed": self.seed,
                "weight_decay": self.weight_decay,
                "stochastic_rounding": self.stochastic_rounding,
                "the step": self.step_number,
                "split": split,
                "costs": costs and [float(c) for c in costs],
                "per_example": self.per_example,
                "evaluate": self.evaluate,
                "moved": self.moved,
            }
        )
        self._shared = SharedExamples(self.ranks, split == "batch")

    def attach(self, journal: Journal | None, step: int | None = None) -> None:
        """As of `ZO`, called by all ranks: rank 0 gives the journal, the others None. Where `step` is given, all have the weights
        before it."""

        def begin() -> None:
            if (journal is None) == (self.ranks.rank == 0):
                raise ValueError("rank 0 alone writes the journal; expected it there, and journal=None on other ranks")
            if journal is not None:
                self._attach(journal, step)

        self.ranks.together(begin)
        self._follow(step)
        self.ranks.same({"the digest of the weights": ops.digest(self.model), "the step": self.step_number})

    def _follow(self, step: int | None) -> None:
        """What rank 0 has of its journal, on all ranks."""
        own = None if self.journal is None else (self.journal.start, [] if step is not None else self.journal.records())
        held = self.ranks.objects(own)[0]
        self._journaled = held is not None

        def follow() -> None:
            if self.ranks.rank and held is not None:
                self.step_number = held[0] if step is None else step
                self._replay(held[1])

        self.ranks.together(follow)

    def _perturbed(self, plan: StepPlan, tree: EvaluationTree, parts: Sequence[Part]) -> Evaluation:
        if not self.per_example:
            return super()._perturbed(plan, tree, parts)
        self.look_at(parts[0].batch)
        numbers = self._shared.numbers
        return self._examples.run(tree, parts, lambda own: self._executor(plan.seed, plan.eps, numbers(own)))

    def _evaluated(self, batch: Any, run: Run) -> tuple[StepPlan, Evaluation]:
        by_rows = self.split == "batch"
        if self.spread:
            # its forwards are common work: a rank that stayed away would leave the others waiting
            self.ranks.together(lambda: self._check_rows(batch))
        start, stop = (0, self.tree.leaves) if by_rows else self.spans[self.ranks.rank]
        longest = max(stop - start for start, stop in self.spans) if not by_rows else self.tree.leaves
        own = Evaluation()
        failed: Exception | None = None
        plan, mark, rows = None, 0.0, 0.0
        sums: list[Sum] = []
        parts: list[Part] = []
        try:
            parts = self._parts(batch) if batch is not None or not by_rows else []
            plan = self._plan(parts[0].batch if parts else None)
            mark = _mark(plan, self.step_number, [] if by_rows else [part.batch for part in parts])
            rows = self._rows(parts) if by_rows else 1.0
        except Exception as error:
            failed = error
        if self.per_example:
            failed = self._shared.meet(parts, self.rows_of, rows) or failed
        try:
            if failed is None and rows and stop > start:
                assert plan is not None
                own = run(plan, self.tree if by_rows else share(self.tree, start, stop), parts)
                # exact, so that the result does not depend on how parts are spread over ranks
                sums = (by_rows and own.sums) or [(rows * loss, 0.0) for loss in own.losses]
        except Exception as error:
            failed = error
        sums += [(0.0, 0.0)] * (longest - len(sums))
        numbers = [float(failed is not None), mark, float(own.flops), rows]
        found = [*(a for a, _ in sums), *(b for _, b in sums if by_rows)]
        every = self.ranks.gather([*numbers, *(self._shared.packed(own, longest) if self.per_example else found)])
        if any(row[0] for row in every):
            self.ranks.fail(failed)
        if len({row[1] for row in every}) > 1:
            raise ValueError(
                f"step {self.step_number}: ranks were given different learning rates"
                f"{'' if by_rows else ' or batches'}; expected the same on every rank (split='batch' takes different rows)"
            )
        assert plan is not None
        if not self._same_loss:
            self._compare_loss(parts[0].batch if parts else None, [bool(row[3]) for row in every])
            self._same_loss = True
        return plan, self._joined(own, every)

    def _rows(self, parts: Sequence[Part]) -> float:
        """Weight of this rank's losses."""
        if len(parts) == 1:
            return float(self.rows_of(parts[0].batch))
        return math.fsum(part.weight for part in parts)

    def _compare_loss(self, batch: Any, have: list[bool]) -> None:
        """At the first step every rank evaluates one batch at the unmoved weights: another loss is found by its value."""
        if self.split == "batch":
            if True not in have:
                return
            first = have.index(True)
            held = tree_map_only(Tensor, lambda t: t.cpu(), batch) if self.ranks.rank == first else None
            batch = self.ranks.objects(held)[first]
            device = next(self.model.parameters()).device
            batch = tree_map_only(Tensor, lambda t: t.to(device), batch)

        def evaluate() -> float:
            with evaluation_mode(self.model):
                loss = as_tensor(self.loss_fn(self.model, batch))
            # a loss an example will do
            return float((loss.full_tensor() if is_dtensor(loss) else loss).double().mean())

        losses = [row[0] for row in self.ranks.gather([self.ranks.together(evaluate)])]
        bound = 1e-5 if all(p.dtype == torch.float32 for p in self.model.parameters()) else 2e-2
        for rank, loss in enumerate(losses):
            if not abs(loss - losses[0]) <= bound * max(abs(loss), abs(losses[0])):
                raise ValueError(
                    f"step {self.step_number}: the loss of one batch at the same weights is {loss:.9g} on rank {rank}, "
                    f"{losses[0]:.9g} on rank 0; expected the same loss function on every rank, without dropout or other "
                    "randomness. The step was not applied"
                )

    def _check_rows(self, batch: Any) -> None:
        if batch is None or not self._rows(self._parts(batch)):
            raise ValueError(
                f"step {self.step_number}: a rank has no row; expected some on every rank, since the model is sharded over them"
            )

    def _joined(self, own: Evaluation, every: list[list[float]]) -> Evaluation:
        """Losses of the whole tree; the same numbers in the same order on every rank."""
        result = Evaluation()
        result.kept_bytes = own.kept_bytes
        result.flops = int(math.fsum(row[2] for row in every))
        # a rank without a share has used none; the others look. A gathered parameter is not the one that is moved
        result.used = (not self.spread and own.used) or {id(tensor) for tensor in named_tensors(self.model).values()}
        if self.per_example:
            if not sum(self._shared.counts):
                raise ValueError(
                    f"step {self.step_number}: no rank has a row; expected a batch on one of them at least"
                )
            longest = self.tree.leaves if self.split == "batch" else max(stop - start for start, stop in self.spans)
            self._shared.join(result, [row[4:] for row in every], longest, self.spans)
            return result
        if self.split == "directions":
            result.losses = [loss for row, (a, b) in zip(every, self.spans, strict=True) for loss in row[4 : 4 + b - a]]
            return result
        total = math.fsum(row[3] for row in every)
        if not total:
            raise ValueError(f"step {self.step_number}: no rank has a row; expected a batch on one of them at least")
        leaves = self.tree.leaves
        result.losses = [
            math.fsum(part for row in every for part in (row[4 + leaf], row[4 + leaves + leaf])) / total
            for leaf in range(leaves)
        ]
        return result

    def _write(self, record: Record) -> None:
        # on disk at rank 0 before any rank moves
        if self._journaled:
            self.ranks.together(lambda: super(DistributedZO, self)._write(record))
        else:
            super()._write(record)


def _mark(plan: StepPlan, step: int, batch: Any) -> float:
    """48 bits that tell steps apart: number, seed, rates, sizes, and the tensors of the batch."""
    state = hashlib.blake2s(repr((step, plan.seed, plan.rates, plan.eps)).encode())
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            # bytes of any dtype
            held = leaf.detach().cpu().contiguous().view(-1).view(torch.uint8)
            state.update(repr((leaf.dtype, tuple(leaf.shape))).encode() + held.numpy().tobytes())
    return float(int.from_bytes(state.digest()[:6], "little"))
