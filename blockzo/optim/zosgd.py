"""A `torch.optim.Optimizer` whose gradient comes from losses: parameters, a closure, torch's schedulers; no model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from blockzo import ops
from blockzo.contract import check_moved
from blockzo.journal.file import Journal
from blockzo.journal.record import BlockUpdate, Record, check_record, float32
from blockzo.methods import Method, Scalars
from blockzo.methods.whole import MeZO
from blockzo.noise import Noise
from blockzo.ops.params import Target, targets
from blockzo.optim.closures import Closure, Moved, Seen, Terms, numbers, params_of
from blockzo.optim.evaluation import check_loss
from blockzo.optim.moments import Moment, mean_factor, root, second_moments, velocity
from blockzo.optim.repeatable import check_repeatable, tolerance_of
from blockzo.optim.step import step_seed
from blockzo.perturb import check_reads


class ZOSGD(torch.optim.Optimizer):
    """Zeroth-order SGD for a loop that is written for `torch.optim`: `loss = optimizer.step(closure)`, nothing is backpropagated.

    Each group of parameters is a block of the method, with a learning rate, eps and weight decay of its own. A step has the bits
    of `blockzo.ZO` with the same method, seed and blocks.

    Args:
        named_parameters: `model.named_parameters()`, or groups `{"params": ..., "lr": ...}` of such pairs. Those that require no
            gradient are left out. Tensors without a name are "0", "1", ... in the order given: noise goes by names.
        lr: of the groups that say no other, as eps and weight decay are.
        eps: how far the weights are perturbed.
        method: its tree and scalars: `MeZO()` (where None), `SPSA(directions)`, `OneSided(directions)`, `FZOO(directions)`, ...
        weight_decay: decoupled: w * (1 - lr * weight_decay).
        momentum: factor of the velocity, as in `torch.optim.SGD`. Nothing of a weight's size is stored: the velocity is made
            again from the seeds and scalars of the last steps, in the pass of the update.
        window: how many steps; what is older is left out.
        beta2: above 0, Adam's second moment: a group's update is divided by the root of the moving mean of its squared gradient,
            and with momentum the velocity is the mean of the window. Along one direction of signs that square is the same for
            all weights of a group, and else about so in the mean: a number a group is all that is stored.
        distribution: of the noise.
        rank: of the noise of matrices, 1 to 64; full where None.
        seed: of the run; every step has its own.
        evaluate: "perturbed": weights are not written while losses are taken, so there is nothing to restore and no drift.
            "in_place": they are moved, for losses that read them where torch does not show it (compiled code). The restore
            rounds: in float32 by about one rounding a step, in 16 bits by more than a small update.
        check: at the first step, does the loss repeat (no dropout: call `model.eval()`) and read only what is perturbed? Three
            evaluations more.
        moved: how products multiply moved 16-bit weights, as of `blockzo.ZO`.
        journal: gets every record before it is applied; `journal.layout` is that of `layout`. Not with momentum or "in_place".

    Attributes:
        record: of the last step; None before it and with momentum, whose update has several seeds.
        layout: name -> number of its group.
    """

    def __init__(
        self,
        named_parameters: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        method: Method | None = None,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        window: int = 32,
        beta2: float = 0.0,
        distribution: str = "rademacher",
        rank: int | None = None,
        seed: int = 0,
        evaluate: str = "perturbed",
        check: bool = True,
        stochastic_rounding: bool = False,
        journal: Journal | None = None,
        moved: str = "auto",
    ) -> None:
        check_moved(moved)
        if moved == "float32" and evaluate == "in_place":
            raise ValueError(
                'moved is "float32" with evaluate="in_place", where weights are written in their dtype; expected "auto" or '
                '"rounded"'
            )
        if evaluate not in ("perturbed", "in_place"):
            raise ValueError(f'evaluate is {evaluate!r}; expected "perturbed" or "in_place"')
        if not 0.0 <= momentum < 1.0 or window < 1:
            raise ValueError(f"momentum is {momentum} and window {window}; expected [0, 1) and at least 1")
        if not 0.0 <= beta2 < 1.0:
            raise ValueError(f"beta2 is {beta2}; expected [0, 1), 0 for updates that are not divided")
        if journal is not None and (momentum or evaluate == "in_place"):
            raise ValueError(
                "a journal cannot hold these steps: with momentum an update has several seeds, in place the weights drift; "
                "expected momentum=0 and evaluate='perturbed'"
            )
        self.method = MeZO() if method is None else method
        self._kind = Noise(seed, distribution, rank)
        self.momentum, self.window, self.beta2 = momentum, window, beta2
        self.evaluate, self.stochastic_rounding, self.journal = evaluate, stochastic_rounding, journal
        self.moved = moved
        self.record: Record | None = None
        self._unchecked = check
        super().__init__(named_parameters, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        self.state["run"] = {"seed": seed, "step": 0, "past": [], "moments": []}  # type: ignore[index]
        self._groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group of (name, parameter) pairs or of parameters; one more block from the next step on."""
        given = param_group["params"]
        before = sum(len(group["params"]) for group in self.param_groups)
        pairs = [given] if isinstance(given, Tensor) else list(given)
        named = [pair if isinstance(pair, tuple) else (str(before + k), pair) for k, pair in enumerate(pairs)]
        trained = [(name, tensor) for name, tensor in named if tensor.requires_grad]
        if not trained:
            raise ValueError(
                f"a group of {len(named)} parameters has none that requires a gradient; expected one or more"
            )
        names, tensors = zip(*trained, strict=True)
        super().add_param_group({**param_group, "params": list(tensors), "names": list(names)})

    def _groups(self) -> list[list[Target]]:
        """Checked; a tensor belongs to the group that names it."""
        named = [
            (n, p, g)
            for g, group in enumerate(self.param_groups)
            for n, p in zip(group["names"], group["params"], strict=True)
        ]
        groups: list[list[Target]] = [[] for _ in self.param_groups]
        if len({name for name, _, _ in named}) < len(named):
            raise ValueError("two parameters have one name; expected a name for each: noise goes by names")
        owner = {id(tensor): group for _, tensor, group in named}
        for target in targets({name: tensor for name, tensor, _ in named}):
            whole = target.owner is None
            if not whole and self.evaluate == "perturbed":
                raise ValueError(
                    f'parameter {target.name!r} is a DTensor; expected evaluate="in_place" or whole parameters'
                )
            groups[owner[id(target.tensor if whole else target.owner)]].append(target)
        return groups

    @property
    def _run(self) -> dict[str, Any]:
        """In the state, which `state_dict` holds. `past`, `moments`: as in moments.py."""
        run: dict[str, Any] = self.state["run"]  # type: ignore[index]
        return run

    @property
    def layout(self) -> dict[str, int]:
        return {target.name: number for number, group in enumerate(self._groups()) for target in group}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """Takes the losses that the method asks for and updates.

        Args:
            closure: evaluates the loss of this step's batch: a number or a tensor of one element, the same whenever the weights
                are. It runs without autograd, once for each leaf of the method's tree (twice for MeZO).

        Returns:
            The mean of the losses, which lie around the loss of the weights as they were.

        Raises:
            ValueError: no closure, a loss that is not finite or not repeatable, or a coefficient beyond float32; the weights are
                as they were, but for the rounding of "in_place".
        """
        if closure is None:
            raise ValueError("step was called without a closure; expected one that returns the loss of the batch")
        run, groups = self._run, self._groups()
        self._look(closure, groups)
        noise = replace(self._kind, seed=step_seed(run["seed"], run["step"]))
        eps = [float(group["eps"]) for group in self.param_groups]
        leaves = self.method.tree(len(groups)).leaf_moves()
        taken = Moved(groups, noise, eps) if self.evaluate == "in_place" else Seen(groups, noise, eps, self.moved)
        try:
            losses = numbers([taken.loss(leaf, closure) for leaf in leaves])
            losses = [float32(check_loss(loss, leaf)) for loss, leaf in zip(losses, leaves, strict=True)]
            scalars = self.method.scalars(losses, eps)
            moments = second_moments(run.get("moments", []), scalars, self.beta2) if self.beta2 else []
            rates = self._rates(moments)
            record = check_record(self._record(run["step"], noise, losses, scalars, rates))
            if self.journal is not None:
                self.journal.append(record)
        except BaseException:
            taken.restore()
            raise
        self._update(groups, record, rates, taken.left())
        run["moments"] = moments
        self._remember(noise, scalars)
        self.record = None if self.momentum else record
        run["step"] += 1
        return math.fsum(losses) / len(losses)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the other one was: seed, number of the step, past scalars, groups with their settings.

        Raises:
            ValueError: the groups hold parameters of other names.
        """
        saved, own = ([g.get("names") for g in groups] for groups in (state_dict["param_groups"], self.param_groups))
        if saved != own:
            raise ValueError(f"the state is of parameters {saved}; expected {own}: noise goes by names")
        super().load_state_dict(state_dict)

    def _look(self, closure: Closure, groups: Sequence[Sequence[Target]]) -> None:
        if self._unchecked:
            tolerance = tolerance_of(nn.ParameterList(self.param_groups[0]["params"][:1]))
            if self.evaluate == "perturbed":
                check_reads([target for group in groups for target in group], closure)
            check_repeatable(lambda: numbers([closure()])[0], tolerance=tolerance)
            self._unchecked = False

    def _rates(self, moments: Sequence[Moment]) -> list[float]:
        """What each group's scalars are multiplied by."""
        rates = [float(group["lr"]) for group in self.param_groups]
        if self.beta2:
            past, momentum = self._run["past"], self.momentum
            rates = [r * mean_factor(past, k, momentum) / root(moments[k]) for k, r in enumerate(rates)]
        return rates

    def _record(
        self, step: int, noise: Noise, losses: Sequence[float], scalars: Scalars, rates: Sequence[float]
    ) -> Record:
        updates = []
        for group, block, rate in zip(self.param_groups, scalars, rates, strict=True):
            lr, eps = float(group["lr"]), float(group["eps"])
            # a group without directions rests: its weights do not decay either
            decay = lr * float(group["weight_decay"]) if block else 0.0
            updates.append(BlockUpdate(tuple(block), tuple(rate * s for s in block.values()), lr, eps, decay))
        rounding = self.stochastic_rounding
        kind = noise.distribution
        return Record(
            step, noise.seed, kind, tuple(updates), tuple(losses), stochastic_rounding=rounding, rank=noise.rank
        )

    def _update(
        self, groups: Sequence[Sequence[Target]], record: Record, rates: Sequence[float], left: Sequence[Terms]
    ) -> None:
        """One pass over each group; `left`: what the evaluations moved, which the update takes back."""
        past = self._run["past"]
        for number, (group, update, undo) in enumerate(zip(groups, record.blocks, left, strict=True)):
            noise = record.noise(number)
            terms = [(noise, d, c) for d, c in zip(update.directions, update.coefficients, strict=True)]
            terms += velocity(self._kind, past, number, self.momentum, rates[number])
            terms += [(noise, d, c * (1.0 - update.decay)) for noise, d, c in undo]
            if terms:
                noises, directions, coefficients = zip(*terms, strict=True)
                ops.update_(params_of(group), noises, coefficients, directions, update.decay, self.stochastic_rounding)

    def _remember(self, noise: Noise, scalars: Scalars) -> None:
        if self.momentum:
            past = self._run["past"]
            past.append([noise.seed, [[list(block), list(block.values())] for block in scalars]])
            del past[: max(0, len(past) - self.window + 1)]
