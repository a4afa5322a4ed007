"""What a user holds: an optimiser that takes a batch and does one zeroth-order step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from blockzo.contract import check_moved
from blockzo.journal.file import Journal
from blockzo.journal.record import BlockUpdate, Record, float32
from blockzo.methods.auto import Auto, StepPlan, planned_method
from blockzo.methods.base import Method, named
from blockzo.methods.decoupled import Decoupled
from blockzo.methods.planner import Planner
from blockzo.methods.tree import EvaluationTree
from blockzo.methods.whole import MeZO
from blockzo.noise import Noise, check_rank, check_seed
from blockzo.ops.params import targets, whole_targets
from blockzo.optim.costs import planning_costs
from blockzo.optim.cutting import default_blocks, fine_blocks
from blockzo.optim.decay import Decay, Spared
from blockzo.optim.evaluation import Evaluation
from blockzo.optim.examples import Examples, scalars_of
from blockzo.optim.executor import PerturbedExecutor
from blockzo.optim.in_place import InPlaceExecutor
from blockzo.optim.journaled import Journaled
from blockzo.optim.loss_checks import LossChecks
from blockzo.optim.micro_batches import (
    MicroBatches,
    Part,
    Weight,
    as_one_loss,
    loss_terms,
    mean_losses,
    meaning_of_list,
    parts_of,
)
from blockzo.optim.ranks import check_alone
from blockzo.optim.reuse import Reuse
from blockzo.optim.step import StepResult, distributions_of, per_block, step_seed
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.grouping import MaxGroup
from blockzo.perturb.losses import LossFunction, evaluation_mode, hugging_face_loss

Run = Callable[[StepPlan, EvaluationTree, Sequence[Part]], Evaluation]
Rate = float | Sequence[float] | Callable[[int], float | Sequence[float]]


class ZO(Journaled):
    """Zeroth-order optimiser.

    Args:
        model: its trainable parameters are float32, bfloat16 or float16.
        loss_fn: (model, batch) -> tensor with one element (with `per_example`, one an example will do), or a float or an array
            with one, whose evaluations then run one after the other. May be stopped by an exception that passes through it.
            Where None: `model(**batch).loss`.
        method: MeZO(), SPSA(n), SPZO(outer, inner, variant), OneSided(n), FZOO(n), Tree(levels), Decoupled(directions), or
            "auto" (`Auto()`): a planner measures the blocks and chooses what to move at every step (docs/planner.md). A name,
            such as "spzo" or "one-sided", is that method with its own settings.
        blocks: Blocks(model, boundaries). Where None: in half for methods that need two blocks, several for "auto", else one.
        lr: learning rate; one a block; or a function step -> either. 1e-6 where None. With "auto" a
            factor on the planned rates, 1 where None, that lifts one up to `Auto.caution` times the best and no further.
        eps: size of the perturbation; one number or one a block.
        distribution: "rademacher" or "gaussian"; one or one a block.
        rank: of the noise of matrices, 1 to 64 (docs/noise.md); full where None.
        seed: of the run, in [0, 2**64); step t uses `step_seed(seed, t)`.
        weight_decay: decoupled; a step multiplies weights by 1 - lr * weight_decay.
        no_decay: names of parameters that it spares, or a function of a name, such as `lambda name: "norm" in name`. Records
            then have twice the blocks (`decay.py`), so a journal is made with `layout=zo.layout` and given by `attach`.
        stochastic_rounding: for bfloat16 and float16 weights.
        journal: `Journal.create(...)` or `Journal.resume(...)`; every step is on disk before it is applied. Steps it already
            holds are replayed at once.
        evaluate: "perturbed" (weights are not written to evaluate a loss) or "in_place" (written and restored: not exact, so the
            journal must be one made with exact=False).
        moved: how perturbed forwards multiply moved 16-bit weights of linear layers: "float32" (the move is not rounded),
            "rounded" (once to the weights' dtype, as a move in place leaves them), or "auto" (what is fastest here, which
            depends on the CPU and the number of tokens; docs/perturbed.md). Records and updates are the same kind in every case.
        max_group: evaluations that run as one batch at most; "auto": by measured memory, and only where it is faster; 1: one
            after the other.
        rows_of: weight of a micro-batch: batch -> number that its loss is a mean over. Where None: label tokens where `labels`
            holds one a token, else rows (`micro_batches.loss_terms`).
        per_example: every example of a batch is evaluated along directions of its own (`blockzo.optim.examples`): as many slopes
            as examples for the same forward FLOPs, at a price in noise; a record holds examples times as many scalars. The loss
            must be a mean over examples that do not see each other. With "auto", the planner does so where it measures that
            it pays. Not in place.
        independent_ranks: in a torch.distributed process group of several ranks, says that each trains a model of its own;
            without it such a group is refused, as ranks that share a step need `DistributedZO`.

    Raises:
        ValueError: the settings do not fit each other or the model.
    """

    _joined_ranks = False
    """Whether the ranks of a process group work on one step together."""
    _sharded = False
    """Whether parameters may be parts of tensors that several processes share."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None = None,
        method: Method | Auto | str | None = None,
        blocks: Blocks | None = None,
        lr: Rate | None = None,
        eps: float | Sequence[float] = 1e-3,
        distribution: str | Sequence[str] = "rademacher",
        seed: int = 0,
        weight_decay: float = 0.0,
        stochastic_rounding: bool = False,
        journal: Journal | None = None,
        evaluate: str = "perturbed",
        max_group: MaxGroup = "auto",
        rows_of: Weight | None = None,
        independent_ranks: bool = False,
        per_example: bool = False,
        rank: int | None = None,
        no_decay: Spared | None = None,
        moved: str = "auto",
    ) -> None:
        if not self._joined_ranks:
            check_alone(independent_ranks)
        self.model = model
        self.loss_fn = loss_fn or hugging_face_loss
        if isinstance(method, str):
            method = Auto() if method == "auto" else named(method)
        self.method: Method | Auto = method or MeZO()
        if isinstance(self.method, Auto):
            self.blocks = blocks or fine_blocks(model)
        else:
            self.blocks = blocks or default_blocks(model, self.method)
        if self.blocks.model is not model:
            raise ValueError("blocks were cut from another model; expected Blocks of the model that is trained")
        if evaluate not in ("perturbed", "in_place"):
            raise ValueError(f'evaluate is {evaluate!r}; expected "perturbed" or "in_place"')
        self.moved = check_moved(moved)
        if moved == "float32" and evaluate == "in_place":
            raise ValueError(
                'moved is "float32" with evaluate="in_place", where weights are written in their dtype; expected "auto" or '
                '"rounded"'
            )
        if not (targets(model) if self._sharded else whole_targets(model, "a step of blockzo.ZO")):
            raise ValueError("the model has no trainable parameter; expected one with requires_grad")
        self.per_example = per_example
        if per_example and evaluate == "in_place":
            raise ValueError(
                f"per_example with evaluate={evaluate!r}; an example's own weights are made as they are consumed: expected "
                'evaluate="perturbed"'
            )
        self.planner: Planner | None = None
        if isinstance(self.method, Auto):
            if evaluate == "in_place":
                raise ValueError('method "auto" evaluates perturbed forwards; expected evaluate="perturbed"')
        else:
            self.method.tree(len(self.blocks))
        self.lr: Rate = lr if lr is not None else 1.0 if isinstance(self.method, Auto) else 1e-6
        self.eps = per_block("eps", eps, len(self.blocks))
        if any(e <= 0 or float32(e) == 0 for e in self.eps):
            raise ValueError(f"eps is {eps}; expected a positive number")
        self.distributions = distributions_of(distribution, len(self.blocks))
        self.rank = check_rank(rank)
        self.seed = check_seed(seed)
        self.decay = Decay(self.blocks, weight_decay, no_decay)
        self.stochastic_rounding = stochastic_rounding
        self.evaluate = evaluate
        if self.decay.spares and evaluate == "in_place":
            raise ValueError(
                "no_decay with evaluate='in_place'; one pass restores, decays and updates a block there: expected "
                'evaluate="perturbed", or no_decay=None'
            )
        self.max_group = max_group
        self.rows_of = rows_of or (lambda batch: loss_terms(model, batch))
        self.reuse = Reuse(self.blocks)
        self._perturbing: PerturbedExecutor | None = None
        self._lists_are_parts: bool | None = None
        self.step_number = 0
        self.journal: Journal | None = None
        self.loss_checks = LossChecks(self.blocks, self.loss_fn)
        self._examples = Examples(self.blocks, self.loss_fn, self.rows_of)
        self.rates(0)
        if journal is not None:
            self._attach(journal)

    @property
    def weight_decay(self) -> float:
        return self.decay.rate

    def rates(self, step: int) -> list[float]:
        """Learning rate of each block at a step."""
        value = self.lr(step) if callable(self.lr) else self.lr
        return per_block("lr", value, len(self.blocks))

    def step(self, batch: Any) -> StepResult:
        """Estimates on the batch, writes the record to the journal, updates the weights.

        Args:
            batch: what `loss_fn` takes; or micro-batches, a list of such or `MicroBatches`: one step on all of them, with the
                memory of one (in place: with what is kept between blocks of all). A list that `loss_fn` itself takes is one.
        """
        if self.evaluate == "in_place":
            return self._step_in_place(batch)
        result = self.estimate(batch)
        self.commit(result.record)
        return result

    def estimate(self, batch: Any) -> StepResult:
        """What `step` would do at the current weights, without doing it: `commit` takes the result, or its record."""
        if self.evaluate == "in_place":
            with self._moved_in_place(batch) as (executor, result):
                executor.restore()
                return result
        return self._result(*self._evaluated(batch, self._perturbed))

    def combine(self, results: Sequence[StepResult], weights: Sequence[float]) -> StepResult:
        """One step of several estimates of it, on parts of a batch or on ranks: the bits of `estimate` on all parts.

        Losses are averaged first, and scalars are made of them, since not every method is linear in the losses (FZOO).

        Args:
            results: of `estimate` at the same weights, on different data.
            weights: of each one's losses: its rows or label tokens (`rows_of`); parts of weight 0 do not count.

        Raises:
            ValueError: they are not of one step, or examples have directions of their own (`per_example`), whose numbers depend
                on all of them: pass `MicroBatches` to `estimate`.
        """
        parts = MicroBatches(results, weights)
        plan = self._plan_again(results[0])
        if plan.own:
            raise ValueError(
                "an example's directions depend on how many the step has; with per_example=True pass MicroBatches(batches) to "
                "estimate, in place of single estimates to combine"
            )
        first = results[0]
        for result in results:
            same = (result.record.step, result.seed, len(result.losses)) == (
                self.step_number,
                plan.seed,
                first.forwards,
            )
            if not same or any(
                (own.lr, own.eps) != (update.lr, update.eps)
                for own, update in zip(result.record.blocks, first.record.blocks, strict=True)
            ):
                raise ValueError(
                    f"a result is of step {result.record.step}, seed {result.seed}, with {len(result.losses)} losses; expected "
                    f"estimates of step {self.step_number}, seed {plan.seed}, made with the same settings"
                )
        counted = parts_of(parts, lambda result: 1.0)
        found = Evaluation()
        found.losses = mean_losses([part.batch.losses for part in counted], [part.weight for part in counted])
        found.flops = sum(result.flops for result in results)
        return self._made(plan, found)

    def method_of(self, record: Record) -> Method:
        """The method that a record of this run was made with."""
        return planned_method(self.decay.of_blocks(record)) if isinstance(self.method, Auto) else self.method

    def _plan(self, batch: Any) -> StepPlan:
        seed = step_seed(self.seed, self.step_number)
        rates = tuple(self.rates(self.step_number))
        if not isinstance(self.method, Auto):
            return StepPlan(self.method, rates, tuple(self.eps), seed, self.per_example)
        if self.planner is None:
            self._measure(seed, lambda: self.loss_fn(self.model, batch))
        assert self.planner is not None
        return self.planner.plan(self.step_number, lambda step: step_seed(self.seed, step), rates)

    def _plan_again(self, result: StepResult) -> StepPlan:
        """The plan that a result of this step was made by."""
        if isinstance(self.method, Auto) and self.planner is None:
            raise ValueError(
                'no batch was estimated here; the planner of "auto" counts what blocks cost on the first: call estimate'
            )
        return self._plan(None)

    def _measure(self, seed: int, forward: Callable[[], Any]) -> None:
        """Starts the planner with what the blocks cost, and whether anything can be kept between them."""
        assert isinstance(self.method, Auto)
        count = len(self.blocks)
        self._executor(seed, self.eps).prepare(Decoupled((1,) * count).tree(count), forward)
        whole = self.reuse.reason is not None
        self._start_planner(planning_costs(self.method.costs, self.blocks, forward, whole), whole)
        if self.journal is not None:
            assert self.planner is not None
            self.journal.add_plan({"costs": self.planner.costs, **({"whole": True} if whole else {})})

    def _noise(self, seed: int) -> Noise | list[Noise]:
        noises = [Noise(seed, distribution, self.rank) for distribution in self.distributions]
        return noises[0] if len(set(noises)) == 1 else noises

    def _perturbed(self, plan: StepPlan, tree: EvaluationTree, parts: Sequence[Part]) -> Evaluation:
        self.look_at(parts[0].batch)
        if plan.own:
            return self._examples.run(tree, parts, lambda own: self._executor(plan.seed, plan.eps, own))
        return self._executor(plan.seed, plan.eps).run_parts(tree, parts, lambda one: self.loss_fn(self.model, one))

    def _executor(
        self, seed: int, eps: Sequence[float], directions: Sequence[Sequence[int]] | None = None
    ) -> PerturbedExecutor:
        """The one of this optimiser, for a step of that seed."""
        if self._perturbing is None:
            noise = self._noise(seed)
            self._perturbing = PerturbedExecutor(self.blocks, noise, eps, self.max_group, reuse=self.reuse)
        # what is set between steps counts, as with eps
        self._perturbing.moved = check_moved(self.moved)
        self._perturbing.along(self._noise(seed), eps, directions)
        return self._perturbing

    def _evaluated(self, batch: Any, run: Run) -> tuple[StepPlan, Evaluation]:
        parts = self._parts(batch)
        plan = self._plan(parts[0].batch)
        return plan, run(plan, plan.method.tree(len(self.blocks)), parts)

    def _parts(self, batch: Any) -> list[Part]:
        """Micro-batches of a step, at least one."""
        if isinstance(batch, list) and batch:
            if self._lists_are_parts is None:
                with evaluation_mode(self.model):
                    self._lists_are_parts = meaning_of_list(batch, lambda one: self.loss_fn(self.model, one))
            if self._lists_are_parts:
                batch = MicroBatches(batch)
        return parts_of(batch, self.rows_of)

    def _loss_of(self, part: Part) -> Callable[[], Any]:
        return lambda: self.loss_fn(self.model, part.batch)

    @contextmanager
    def _moved_in_place(self, batch: Any) -> Iterator[tuple[InPlaceExecutor, StepResult]]:
        """Weights as the last evaluation left them; an error inside puts them back."""
        used: list[InPlaceExecutor] = []

        def run(plan: StepPlan, tree: EvaluationTree, parts: Sequence[Part]) -> Evaluation:
            self.loss_checks.repeats(parts[0].batch, in_place=True)
            used.append(InPlaceExecutor(self.blocks, self._noise(plan.seed), plan.eps, self.reuse))
            for part in parts:
                self.reuse.meet(part.batch)
            # the weights move once for all parts
            losses = [self._loss_of(part) for part in parts]
            return used[0].run(tree, as_one_loss(losses, [part.weight for part in parts]))

        try:
            result = self._result(*self._evaluated(batch, run))
            yield used[0], result
        except BaseException:
            for executor in used:
                executor.restore()
            raise

    def _step_in_place(self, batch: Any) -> StepResult:
        with self._moved_in_place(batch) as (executor, result):
            self._write(result.record)
        executor.finish(result.record.blocks, self.stochastic_rounding)
        self.step_number += 1
        return result

    def _result(self, plan: StepPlan, found: Evaluation) -> StepResult:
        self.loss_checks.used(found, self.evaluate == "in_place")
        return self._made(plan, found)

    def _made(self, plan: StepPlan, found: Evaluation) -> StepResult:
        losses = tuple(float32(loss) for loss in found.losses)
        if found.examples is None:
            scalars = plan.method.scalars(losses, plan.eps)
        else:
            each, weights = found.examples
            rounded = [[float32(loss) for loss in own] for own in each]
            scalars = scalars_of(plan.method, rounded, weights, plan.eps)
        applied = scalars if self.planner is None else self.planner.scalars(scalars, plan)
        updates = tuple(
            BlockUpdate(
                tuple(block),
                tuple(lr * s for s in block.values()),
                lr=lr,
                eps=eps,
                # a block without directions rests: its weights do not decay either
                decay=lr * self.decay.rate if block else 0.0,
                distribution=distribution,
            )
            for block, lr, eps, distribution in zip(applied, plan.rates, plan.eps, self.distributions, strict=True)
        )
        record = Record(
            self.step_number,
            plan.seed,
            self.distributions[0],
            self.decay.of_record(updates),
            losses,
            stochastic_rounding=self.stochastic_rounding,
            rank=self.rank,
        )
        return StepResult(math.fsum(losses) / len(losses), scalars, losses, plan.seed, len(losses), found.flops, record)

    def look_at(self, batch: Any) -> None:
        """Before perturbed evaluations: is the loss repeatable, does it write weights, or read them past the mode? Once, mostly.

        Raises:
            ValueError: what is wrong with it; no weight has changed.
        """
        self.loss_checks.repeats(batch)
        self.loss_checks.reads(batch, self.step_number)
