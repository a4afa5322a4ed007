"""The executor: runs an evaluation tree, siblings in groups, and returns the losses of its leaves.

Weights are moved where they are consumed and never written; `in_place.py` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.contract import check_moved
from blockzo.methods.tree import BlockMove, EvaluationTree, Node, Place, Waiting
from blockzo.noise import Noise
from blockzo.ops.params import Target, whole_targets
from blockzo.optim.evaluation import Evaluation, check_loss, joined
from blockzo.optim.micro_batches import Part
from blockzo.optim.reuse import DEPENDS, Reuse, continues, finite, whole
from blockzo.perturb import Index, Move, PerturbedForward
from blockzo.perturb.activations import Activations, group_losses, read_together, split_drift
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.grouping import Grouping, Limits, MaxGroup
from blockzo.perturb.groups import run_groups
from blockzo.perturb.losses import evaluation_mode
from blockzo.perturb.passes import ROUNDED, Path, PathChanged, kept_bytes, no_drift

Forward = Callable[[Sequence[int], PerturbedForward], Any]
"""(a leaf below each group that runs together, the mode) -> what the loss function gives on what those groups see."""


class PerturbedExecutor:
    """Evaluates trees without writing a weight, siblings in groups. One serves all steps of an optimiser (`along`).

    Args:
        noise: of the step, or one for each block.
        eps: size of a move, one a block.
        max_group: evaluations that run as one batch at most; "auto": by measured memory, and only where it is faster. Kept
            activations are those of (levels of the tree) x (evaluations in a group).
        directions: for each block, numbers of the noise's directions that are the tree's directions 0, 1, 2, ...; the same
            numbers where None.
        reuse: what is known of the loss that is evaluated; one for all steps. Where None, it is found out at the first run.
        moved: as of `blockzo.perturbed`.
    """

    def __init__(
        self,
        blocks: Blocks,
        noise: Noise | Sequence[Noise],
        eps: Sequence[float],
        max_group: MaxGroup = "auto",
        directions: Sequence[Sequence[int]] | None = None,
        reuse: Reuse | None = None,
        moved: str = "auto",
    ) -> None:
        self.blocks, self.moved = blocks, check_moved(moved)
        self.reuse = reuse or Reuse(blocks)
        self._targets: list[Target] = []
        self._held: list[tuple[object, ...]] = []
        self.along(noise, eps, directions)
        device = next((target.tensor.device for target in self._targets), torch.device("cpu"))
        self.grouping = Grouping(blocks, max_group, device)

    def along(
        self,
        noise: Noise | Sequence[Noise],
        eps: Sequence[float],
        directions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """The next runs move by these; parameters that were frozen, made or put elsewhere meanwhile are found."""
        noises = [noise] * len(self.blocks) if isinstance(noise, Noise) else list(noise)
        if len(noises) != len(self.blocks):
            raise ValueError(
                f"noise has {len(noises)} entries for {len(self.blocks)} blocks; expected one, or one a block"
            )
        self.noises, self.eps, self.directions = noises, eps, directions
        self._look()

    def _look(self) -> None:
        """What there is to move."""
        found = whole_targets(self.blocks.model, "a perturbed forward")
        facts = [_facts(target) for target in found]
        if not self._targets or facts != self._held:
            self.members = self.blocks.members(found)
            self._indices: dict[tuple[int, ...], Index] = {}
        # held, so that an id stays its tensor's
        self._targets, self._held = found, facts

    def run(self, tree: EvaluationTree, forward: Callable[[], Any]) -> Evaluation:
        """Losses of the leaves. Where evaluations cannot continue from what is kept, each leaf runs the whole model (`Reuse`)."""
        return self.run_each(tree, forward, lambda leaves, mode: forward())

    def run_each(self, tree: EvaluationTree, forward: Callable[[], Any], run: Forward, examples: int = 1) -> Evaluation:
        """The same where leaves see batches of their own.

        Args:
            forward: calls the model on a batch that has all of them; for checks.
            run: calls the model on those of the leaves that run together.
            examples: so many batches of their own make up the whole.
        """
        result = Evaluation()
        self.grouping.apart = examples
        with evaluation_mode(self.blocks.model):
            self.prepare(tree, forward)
            values = self._continued(tree, forward, run, result)
            if values is None:
                values, _, _ = self._evaluate(whole(tree), run, result)
        found = {leaf: self._loss(leaf, value) for leaf, value in values.items()}
        result.losses = [check_loss(found[leaf], moves) for leaf, moves in enumerate(tree.leaf_moves())]
        return result

    def run_parts(self, tree: EvaluationTree, parts: Sequence[Part], loss: Callable[[Any], Any]) -> Evaluation:
        """The same of the micro-batches of a batch, one after the other; `loss` takes one of them."""
        every = []
        for part in parts:
            self.reuse.meet(part.batch)
            every.append(self.run(tree, partial(loss, part.batch)))
        return joined(every, [part.weight for part in parts])

    def prepare(self, tree: EvaluationTree, forward: Callable[[], Any]) -> None:
        """Finds out, where it is not known, whether the tree's evaluations can continue from what is kept."""
        if self.reuse.needed(tree):
            with evaluation_mode(self.blocks.model):
                self.reuse.check(_Trial(self, forward))

    def _continued(
        self, tree: EvaluationTree, forward: Callable[[], Any], run: Forward, result: Evaluation
    ) -> dict[int, Any] | None:
        """The leaves' values; None where they must be evaluated whole."""
        running = self.reuse.tree(tree)
        if not continues(running):
            return self._evaluate(running, run, result)[0]
        error: Exception
        for checked in (False, True):
            try:
                values, drift, paths = self._evaluate(running, run, result)
                if drift > ROUNDED:
                    self.reuse.give_up(PathChanged(DEPENDS))
                    return None
                if all(map(self.reuse.accepts, paths)):
                    self.reuse.failures = 0
                    return values if finite(values) else self._whole_beside(values, tree, run, result)
                error = PathChanged("its layers are called otherwise from evaluation to evaluation")
            except PathChanged as changed:
                error = changed
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as failure:
                # the whole model may do better, or tell what is wrong with the loss
                values, _, _ = self._evaluate(whole(tree), run, result)
                self.reuse.failed(failure)
                return values
            if not checked:
                # another batch may go another way; what holds there is found out once
                self.reuse.check(_Trial(self, forward))
                if self.reuse.reason is not None:
                    return None
        self.reuse.give_up(error)
        return None

    def _whole_beside(
        self, values: dict[int, Any], tree: EvaluationTree, run: Forward, result: Evaluation
    ) -> dict[int, Any]:
        """Values of evaluations that continued and are not all finite: the weights or the batch may be to blame, or the reuse."""
        found, _, _ = self._evaluate(whole(tree), run, result)
        self.reuse.compare(values, found)
        return found

    def _evaluate(
        self, tree: EvaluationTree, forward: Forward, result: Evaluation
    ) -> tuple[dict[int, Any], float, set[Path]]:
        """Values of the leaves by number, the largest drift of what they continue from, and the ways they went."""
        unread: list[tuple[list[int], Tensor, Tensor]] = []
        paths: set[Path] = set()
        run = partial(self._run, forward, paths if continues(tree) else None)
        self.grouping.busy.clear()

        def together(waiting: Waiting, kept: _Kept) -> Iterator[tuple[Waiting, _Kept]]:
            result.kept_bytes = max(result.kept_bytes, kept.nbytes)
            node = waiting[0][1].node
            for part, output, mode in self.grouping.each(waiting, partial(run, kept.output), node.kind):
                result.count(mode)
                if node.stop < len(self.blocks):
                    yield part, _Kept(output, kept.nbytes + kept_bytes(output.tree()))
                    continue
                value, drift = split_drift(output)
                unread.append(([place.leaf for _, place in part], self._losses(value, len(part)), drift))
                yield part, kept

        tree.walk(together, _Kept(None, 0))
        result.flops += self.grouping.take_lost()
        numbers = read_together([*(losses for _, losses, _ in unread), *(drift for _, _, drift in unread)])
        drifts = tree_leaves(numbers[len(unread) :])
        values = {
            leaf: value
            for (leaves, _, _), group in zip(unread, numbers, strict=False)
            for leaf, value in zip(leaves, group, strict=True)
        }
        return values, max(drifts, default=0.0), paths

    def _losses(self, output: Activations, groups: int) -> Tensor:
        """What is read of each group in the end, from what the loss function gave: float32, groups first."""
        return group_losses(output, groups)

    def _loss(self, leaf: int, value: Any) -> float:
        return float(value)

    def _run(
        self,
        forward: Forward,
        paths: set[Path] | None,
        kept: Activations | None,
        part: Waiting,
        row_limits: Limits | None,
        measure: bool,
    ) -> tuple[Activations, PerturbedForward]:
        """`paths`: where the ways of leaves are noted; None: nothing of the tree is kept."""
        first, stop = part[0][1].node.kind
        # blocks before `first` too: a tied weight of theirs may be used again here
        moves = {b: self._move(b, moved) for b in range(stop) if any(moved := [place.path[b] for _, place in part])}
        moved_blocks = tuple(moves)
        if moved_blocks not in self._indices:
            self._indices[moved_blocks] = Index({block: self.members[block] for block in moved_blocks})

        def run(before: Any, mode: PerturbedForward) -> Any:
            call = partial(forward, [place.leaf for _, place in part], mode)
            if paths is None:
                return self.blocks.run_whole(call), no_drift()
            mode.unknown = self.reuse.unknown() if first else None
            if stop == len(self.blocks):
                value, drift, path = self.blocks.run_to_loss(call, first, before, mode.unknown)
                paths.add(path)
                return value, drift
            return self.reuse.kept(partial(self.blocks.run, call, first, stop, before, mode.unbar), mode)

        return run_groups(
            run,
            None if kept is None else kept.take([parent for parent, _ in part]),
            self._indices[moved_blocks],
            moves,
            len(part),
            self._later(stop),
            row_limits,
            measure,
        )

    def _move(self, block: int, moves: Sequence[BlockMove | None]) -> Move:
        """Of one block in all groups; a group that does not move it has scale 0."""
        named = [0 if move is None else move.direction for move in moves]
        known = None if self.directions is None else self.directions[block]
        # a check moves blocks that the tree has no directions for, too
        directions = tuple(known[k] if known else k for k in named)
        scales = tuple(0.0 if move is None else move.sign * self.eps[block] for move in moves)
        return Move(self.noises[block], directions, scales, self.moved)

    def _later(self, stop: int) -> dict[int, str]:
        return {
            id(
                target.tensor
            ): f"parameter {target.name!r} belongs to block {block} but the model uses it in block {stop - 1} or "
            "before; pass Blocks(example=...) so that it is assigned where it is used first"
            for block in range(stop, len(self.blocks))
            for target in self.members[block]
        }


class _Trial:
    """Evaluations of the check of kept activations (`reuse.Trial`), all blocks moved along their first direction."""

    def __init__(self, executor: PerturbedExecutor, forward: Callable[[], Any]) -> None:
        self.executor, self.forward = executor, forward

    def whole(self, sign: int) -> tuple[Any, Path]:
        value, _, path = self._run(0, len(self.executor.blocks), None, sign)
        return value, path

    def keep(self, block: int, kept: Activations | None) -> Activations:
        return self._alone(block, block + 1, kept, 1, set())

    def rest(self, block: int, kept: Activations | None) -> tuple[Any, float, Path]:
        return self._run(block, len(self.executor.blocks), kept, 1)

    def _run(self, first: int, stop: int, kept: Activations | None, sign: int) -> tuple[Any, float, Path]:
        paths: set[Path] = set()
        value, drift = split_drift(self._alone(first, stop, kept, sign, paths))
        return value.tree(), float(drift), paths.pop()

    def _alone(self, first: int, stop: int, kept: Activations | None, sign: int, paths: set[Path]) -> Activations:
        moved = tuple(BlockMove(block, 0, sign) if self.executor.members[block] else None for block in range(stop))
        place = Place(Node(first, stop), moved, 0)
        return self.executor._run(lambda leaves, mode: self.forward(), paths, kept, [(0, place)], None, False)[0]


@dataclass(frozen=True)
class _Kept:
    """What a part left, and bytes of all that is kept with it."""

    output: Activations | None
    nbytes: int


def _facts(target: Target) -> tuple[object, ...]:
    """The same as long as nothing that an index holds of the tensor has changed."""
    tensor = target.tensor
    return target.name, id(tensor), tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
