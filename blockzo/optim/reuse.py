"""May evaluations of a loss continue from kept activations? Found by trying, looked at in every step, never assumed.

Kept activations stand for a block only if the loss uses nothing else of its layers. Hidden states, attentions, router
logits, side state that later layers read, a cache that generation fills: none of these is in them. So before the first step
every cut is tried once, with weights moved: the loss continued from what the blocks before it left must be the loss of the whole
model. Where it is not, every evaluation runs the whole model, which is right for any loss and costs what it costs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from blockzo.methods.tree import EvaluationTree, Node
from blockzo.perturb import PerturbedForward
from blockzo.perturb.blocks import Blocks
from blockzo.perturb.forms import form_of
from blockzo.perturb.left import Left
from blockzo.perturb.losses import as_tensor
from blockzo.perturb.passes import ROUNDED, Kept, Path, PathChanged
from blockzo.perturb.standing import Standing
from blockzo.perturb.unknown import Unknown

ROUNDING = 2e-6
"""Relative difference of a continued loss from that of the whole model which is let pass: both run the same kernels."""
OF_SPREAD = 0.005
"""Or this share of the difference between two losses of opposite moves."""
EXACTLY = ROUNDED / 100
"""Drift of inputs (`passes.Kept`) where one and the same kernel made both."""
DEPENDS = "a later call of its layers depends on what an earlier call gave (generation, recurrence)"
INSIDE = (
    "a loss is not finite where it continues, and finite on the whole model: it uses more of the layers than the output of the "
    "last (hidden states, hooks on layers, what runs between them)"
)
LEAVES = (
    "layers leave tensors elsewhere than in their output (on a module, in a list, in a buffer), or take numbers out of "
    "activations (.item()), which later ones could read"
)
MOST_FORMS = 64
"""Forms of batches that each get a check; where there are more, the form is no switch."""
AGAIN = 256
"""Steps after which all is tried again: a loss may turn to hidden states late in training."""


class Trial(Protocol):
    """Evaluations that a check makes, all blocks moved along one direction; each alone, not in a group."""

    def whole(self, sign: int) -> tuple[Any, Path]:
        """What the loss function gives on the whole model."""

    def keep(self, block: int, kept: Any) -> Any:
        """What block `block` leaves, run on `kept`; sign +."""

    def rest(self, block: int, kept: Any) -> tuple[Any, float, Path]:
        """What the loss function gives from block `block` on, sign +; how far inputs drifted (`passes.Kept`)."""


class Reuse:
    """What is known of one loss on one cut model.

    Attributes:
        reason: why every evaluation runs the whole model; None: it continues from kept activations.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.reason: str | None = None
        self.paths: set[tuple[Any, ...]] = set()
        self.steps = self.failures = 0
        self._batches: set[Any] = set()
        self._places: dict[int, ref[Tensor]] = {}
        """Whole numbers that parts left."""
        self._another = False

    def tree(self, tree: EvaluationTree) -> EvaluationTree:
        """The tree to run: the one given, or its leaves, each run whole."""
        return tree if self.reason is None else whole(tree)

    @classmethod
    def of(cls, blocks: Blocks, loss_fn: Callable[..., Any]) -> Reuse:
        """One for all that evaluate this loss on these blocks, such as the virtual clients of a simulation."""
        return _known.setdefault(blocks, {}).setdefault(loss_fn, cls(blocks))

    def meet(self, batch: Any) -> None:
        """Before a batch is evaluated: one of another form (a key more, a switch in it) may go another way that shows nowhere."""
        form = form_of(batch, texts=False)
        if form not in self._batches and len(self._batches) < MOST_FORMS:
            self._batches.add(form)
            self._another = True

    def needed(self, tree: EvaluationTree) -> bool:
        """Whether the next step begins with a check."""
        if self.reason is not None or not continues(tree):
            return False
        self.steps += 1
        another, self._another = self._another, False
        return not self.paths or another or self.steps % AGAIN == 0

    def check(self, trial: Trial) -> None:
        """Tries every cut; costs three forwards of the model, one more in parts, and for every cut the blocks after it, once.

        Raises:
            Exception: whatever the loss function raises on the whole model.
        """
        expected, path = trial.whole(1)
        opposite = trial.whole(-1)[0]
        bounds = _bounds(expected, opposite)
        kept: Any = None
        try:
            for block in range(1, len(self.blocks)):
                kept = self._left(trial, block - 1, kept)
                # other moves between: what a model remembers of its last call must not help
                if block == 1 and not _close(trial.whole(-1)[0], opposite, bounds) and self.blocks.leaves:
                    # code that comes after the call, and was not come to, set something back
                    self.blocks.leaves = False
                    trial.whole(-1)
                    kept = trial.keep(0, None)
                    trial.whole(-1)
                found, drift, went = trial.rest(block, kept)
                if drift > EXACTLY:
                    raise PathChanged(DEPENDS)
                if went != path:
                    raise PathChanged("its layers are called otherwise when outputs are kept")
                if not _close(found, expected, bounds):
                    raise PathChanged(
                        f"the loss continued after layer {self.blocks.starts[block] - 1} is {_shown(found)}, of the whole model "
                        f"{_shown(expected)}: it uses more of the layers than the output of the last (hidden states, attentions, "
                        "router logits or other side outputs)"
                    )
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            self.give_up(error)
            return
        self.paths |= path

    def _left(self, trial: Trial, block: int, kept: Any) -> Any:
        """What block `block` leaves. Where the model stands otherwise once its forward was left, it is not left again."""
        standing = Standing(self.blocks.model)
        try:
            found = trial.keep(block, kept)
        finally:
            changed = standing.put_back()
        if not changed or not self.blocks.leaves:
            return found
        self.blocks.leaves = False
        return trial.keep(block, kept)

    def kept(self, run: Callable[[Left, Unknown | None], Kept], mode: PerturbedForward) -> Kept:
        """What the part of a model left that `run` runs under the mode.

        Raises:
            PathChanged: its layers leave more than their output. Tables that a layer makes once are not there again.
        """
        for _ in range(2):
            mode.left = Left()
            try:
                found, left = run(mode.left, mode.unknown), mode.left
            finally:
                mode.left = None
            if not left.anything(found.outputs):
                self._places = {number: held for number, held in self._places.items() if held() is not None}
                self._places |= {id(place): ref(place) for place in left.places(found.outputs)}
                return found
        raise PathChanged(LEAVES)

    def unknown(self) -> Unknown:
        """Of an evaluation that continues."""
        return Unknown(self._places)

    def accepts(self, path: Path) -> bool:
        """Whether an evaluation went a way that was tried."""
        return path <= self.paths

    def compare(self, continued: Mapping[int, Any], found: Mapping[int, Any]) -> None:
        """Gives up where a loss that continued is not finite and that of the whole model is; leaf -> loss, or one an example."""
        if any(not finite(continued[leaf]) and finite(value) for leaf, value in found.items()):
            self.give_up(PathChanged(INSIDE))

    def failed(self, error: Exception) -> None:
        """Evaluations failed that ran whole without fault. Once, it may have been another thing: all is tried again at the next
        step. Twice in a row, it is this.
        """
        self.failures += 1
        if isinstance(error, PathChanged) or self.failures > 1:
            self.give_up(error)
            return
        self.paths.clear()
        warnings.warn(
            f"evaluations that continue from kept activations failed once ({type(error).__name__}: {str(error)[:300]}); the step "
            "ran the whole model, with the right losses, and the next one tries again",
            stacklevel=7,
        )

    def give_up(self, error: Exception) -> None:
        """From now on every evaluation runs the whole model; said once, with the price."""
        self.reason = str(error) if isinstance(error, PathChanged) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"evaluations cannot continue from kept activations: {self.reason.splitlines()[0][:400]}. Losses and updates stay "
            "right: every evaluation runs the whole model, so a step costs as many full forwards as it has losses, and cutting "
            "the model into blocks saves nothing",
            stacklevel=7,
        )


_known: WeakKeyDictionary[Blocks, dict[Callable[..., Any], Reuse]] = WeakKeyDictionary()


def finite(losses: Any) -> bool:
    return all(map(math.isfinite, tree_leaves(losses)))


def continues(tree: EvaluationTree) -> bool:
    return any(root.children for root in tree.roots)


def whole(tree: EvaluationTree) -> EvaluationTree:
    """The same leaves, each run from the first block to the last."""
    return EvaluationTree(tree.blocks, tuple(Node(0, tree.blocks, moves) for moves in tree.leaf_moves()))


def _numbers(value: Any) -> list[Tensor]:
    leaves = map(as_tensor, tree_leaves(value))
    return [leaf.detach().reshape(-1).double().cpu() for leaf in leaves if isinstance(leaf, Tensor)]


def _bounds(expected: Any, other: Any) -> list[float]:
    """Of each tensor of a result, how far it may differ."""
    result = []
    for one, two in zip(_numbers(expected), _numbers(other), strict=False):
        size = float(one.abs().amax()) if one.numel() else 0.0
        spread = float((one - two).abs().amax()) if one.numel() and one.shape == two.shape else 0.0
        result.append(max(ROUNDING * size, OF_SPREAD * spread) if math.isfinite(size + spread) else math.inf)
    return result


def _close(found: Any, expected: Any, bounds: list[float]) -> bool:
    ones, twos = _numbers(found), _numbers(expected)
    if [len(one) for one in ones] != [len(two) for two in twos]:
        return False
    return all(
        bool((((one - two).abs() <= bound) | (one == two) | (one.isnan() & two.isnan())).all())
        for one, two, bound in zip(ones, twos, bounds, strict=False)
    )


def _shown(value: Any) -> str:
    numbers = _numbers(value)
    return f"{float(numbers[0][0]):.7g}" if numbers and len(numbers[0]) else f"a {type(value).__name__}"


class UnmovedTrial:
    """Evaluations of the check of kept activations (`reuse.Trial`) on the weights as they are: moves in place leave rounding."""

    def __init__(self, blocks: Blocks, forward: Callable[[], Any]) -> None:
        self.blocks, self.forward = blocks, forward

    def whole(self, sign: int) -> tuple[Any, Path]:
        value, _, path = self.blocks.run_to_loss(self.forward)
        return value, path

    def keep(self, block: int, kept: Any) -> Any:
        return self.blocks.run(self.forward, block, block + 1, kept)

    def rest(self, block: int, kept: Any) -> tuple[Any, float, Path]:
        value, drift, path = self.blocks.run_to_loss(self.forward, block, kept)
        return value, float(drift), path
