"""A whole step on the device: both losses of every direction, the scalars and the update, captured once as a CUDA graph and
replayed with numbers that are written to its memory. The losses come back in one copy at the end.

Experimental: run without capture on a CPU, never on a GPU (docs/gpu.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from blockzo.journal.record import decay_factor
from blockzo.methods.whole import SPSA, MeZO
from blockzo.ops.packed import pack
from blockzo.ops.params import Target, targets
from blockzo.optim.evaluation import Evaluation, check_loss
from blockzo.optim.step import StepResult
from blockzo.optim.zo import ZO
from blockzo.perturb import Index, PackedMove
from blockzo.perturb.groups import run_groups
from blockzo.perturb.losses import evaluation_mode

WARM_UP = 2
"""Runs before the capture, as if under capture: kernels are compiled and tables made in the first; the second must not wait for
the device."""


class GraphedStep:
    """`ZO.step` for batches of one shape, with the record, the losses and the weights of `ZO.step`.

    On a GPU the step is captured at the first call, once; the host then copies a batch and three numbers, launches one graph and
    reads one tensor. On a CPU the same operations run one after the other (for tests).

    Args:
        zo: with method MeZO() or SPSA(n), one block, evaluate="perturbed" and max_group=1; its parameters lie whole on one
            device. Its loss function must do the same work for every batch and must not wait for the device.
        capture: whether to capture a graph; None: on a GPU.

    Raises:
        ValueError: the optimiser is of another kind, a batch has another shape, or a loss or coefficient is not finite (the
            weights are then as they were).
    """

    def __init__(self, zo: ZO, capture: bool | None = None) -> None:
        self.zo, self.directions = zo, _directions(zo)
        self.targets: list[Target] = targets(zo.model)
        devices = {target.tensor.device for target in self.targets}
        if len(devices) != 1 or any(t.place is not None or not t.tensor.is_contiguous() for t in self.targets):
            raise ValueError(
                f"parameters lie on {len(devices)} devices, in parts or strided; expected whole contiguous ones on one device"
            )
        (self.device,) = devices
        self.capture = self.device.type == "cuda" if capture is None else capture
        if self.capture and self.device.type != "cuda":
            raise ValueError(f"parameters lie on {self.device}; expected a CUDA device to capture a graph")
        self.index = Index({0: self.targets})
        self._settings = self._now()
        self._host = torch.zeros(3, dtype=torch.int64, pin_memory=self.capture)
        # seed, float64 learning rate and float32 factor, by their bits
        self._numbers = torch.zeros(3, dtype=torch.int64, device=self.device)
        count, eps = self.directions, zo.eps[0]
        self._order = torch.arange(count, dtype=torch.int64, device=self.device)
        scales = [sign * eps for _ in range(count) for sign in (1, -1)]
        self._scales = torch.tensor(scales, dtype=torch.float32).to(self.device)
        # a tensor, as division by a Python number is a multiplication on a GPU; the number is that of methods.contrasts
        self._divisor = torch.tensor([2 * count * eps], dtype=torch.float64).to(self.device)
        self._batch: tuple[list[Any], Any] | None = None
        self._result: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kept: list[Tensor] = []
        self._scratch: dict[tuple[object, ...], Tensor] = {}
        self._seen = Evaluation()

    def step(self, batch: Any) -> StepResult:
        """One step. With a journal the graph gives the losses alone (at a rate of 0, which leaves every bit), and the update
        follows once the record is on disk."""
        if self._now() != self._settings:
            raise ValueError(
                "the model's parameters, eps, moved or rounding changed after the step was made; make GraphedStep again"
            )
        if self._batch is None:
            self.zo.look_at(batch)
        plan = self.zo._plan(batch)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            values = self._on_device(batch, plan.seed, *(plan.rates if self.zo.journal is None else (0.0,)))
        moves = plan.method.tree(1).leaf_moves()
        losses, coefficients = values[: len(moves)], tuple(values[len(moves) :])
        found = Evaluation()
        found.losses = [check_loss(loss, path) for loss, path in zip(losses, moves, strict=True)]
        found.flops, found.used = self._seen.flops, self._seen.used
        result = self.zo._result(plan, found)
        if self.zo.journal is not None:
            self.zo.commit(result.record)
            return result
        if result.record.blocks[0].coefficients != coefficients:
            raise RuntimeError(
                f"the device computed coefficients {coefficients}, the host {result.record.blocks[0].coefficients} from the same "
                "losses; expected equal ones. The weights moved by the device's: load them again, and do not use GraphedStep here"
            )
        self.zo.step_number += 1
        return result

    def _on_device(self, batch: Any, seed: int, lr: float) -> list[float]:
        self._take(batch)
        if self.capture and self._graph is None:
            self._record_graph()
        self._write(seed, lr, decay_factor(lr * self.zo.weight_decay))
        if self._graph is not None:
            self._graph.replay()
            # the graph writes behind autograd's back
            torch.autograd.graph.increment_version([t.tensor for t in self.targets if not t.tensor.is_inference()])
        else:
            self._result = self._run()
        assert self._result is not None
        values: list[float] = self._result.tolist()
        return values

    def _run(self) -> Tensor:
        """The step on the device: float64 [losses + coefficients]."""
        seed, lr = self._numbers[:1], self._numbers[1:2].view(torch.float64)
        factor = self._numbers[2:].view(torch.float32)[:1]
        distribution = self.zo.distributions[0]
        assert self._batch is not None
        batch = tree_unflatten(*self._batch)
        losses, seen = [], Evaluation()
        with evaluation_mode(self.zo.model):
            for leaf in range(2 * self.directions):
                direction = self._order[leaf // 2 : leaf // 2 + 1]
                move = PackedMove(
                    pack(seed, direction, self._scales[leaf : leaf + 1], distribution), self._scratch, self.zo.moved
                )
                out, mode = run_groups(lambda *_: self._loss(batch), None, self.index, {0: move}, 1)
                seen.count(mode)
                losses.append(_one(out.tree()))
            self._seen = seen
            found = torch.cat(losses)
            pairs = found.double().view(-1, 2)
            slopes = (pairs[:, 0] - pairs[:, 1]) / self._divisor
            coefficients = (lr * slopes).float()
            # what is not finite must not reach the weights; coefficients of 0 leave every bit
            sound = torch.isfinite(found).all() & torch.isfinite(coefficients).all()
            applied = torch.where(sound, coefficients, torch.zeros_like(coefficients))
            kept = torch.where(sound, factor, torch.ones_like(factor))
            stochastic = self.zo.stochastic_rounding
            step = pack(seed, self._order, applied, distribution, kept, stochastic)
            torch.ops.blockzo.move_.packed(
                [target.tensor for target in self.targets],
                [target.stream for target in self.targets],
                "update",
                step.line,
                step.terms,
                distribution,
                stochastic,
            )
            return torch.cat([found.double(), coefficients.double()])

    def _loss(self, batch: Any) -> Any:
        return self.zo.blocks.run(lambda: self.zo.loss_fn(self.zo.model, batch), 0, 1)

    def _write(self, seed: int, lr: float, factor: float) -> None:
        self._host[:] = torch.tensor(struct.unpack("<3q", struct.pack("<Qdfi", seed, lr, factor, 0)), dtype=torch.int64)
        self._numbers.copy_(self._host, non_blocking=True)

    def _take(self, batch: Any) -> None:
        """Copies a batch to where the step reads it."""
        leaves, spec = tree_flatten(batch)
        if self._batch is None:
            held = [x.to(self.device, copy=True) if isinstance(x, Tensor) else x for x in leaves]
            self._batch = held, spec
            return
        if spec != self._batch[1]:
            raise ValueError("the batch has another structure than the first one; expected the same")
        for number, (held_leaf, leaf) in enumerate(zip(self._batch[0], leaves, strict=True)):
            if not isinstance(leaf, Tensor) or not isinstance(held_leaf, Tensor):
                alike = type(leaf) is type(held_leaf) and leaf == held_leaf
            else:
                alike = leaf.shape == held_leaf.shape and leaf.dtype == held_leaf.dtype
            if not alike:
                raise ValueError(
                    f"entry {number} of the batch is {_shown(leaf)}, of the first batch {_shown(held_leaf)}; expected batches of "
                    "one shape (pad them), or make GraphedStep again"
                )
        for held_leaf, leaf in zip(self._batch[0], leaves, strict=True):
            if isinstance(leaf, Tensor):
                held_leaf.copy_(leaf, non_blocking=True)

    def _record_graph(self) -> None:
        from blockzo.ops.backends.gpu.tables import held_tables

        # a learning rate of 0 and no decay leave every bit of the weights
        self._write(0, 0.0, 1.0)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        before = torch.cuda.get_sync_debug_mode()
        try:
            with torch.cuda.stream(stream), as_if_captured():
                for run in range(WARM_UP):
                    torch.cuda.set_sync_debug_mode("error" if run else before)
                    self._run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        graph = torch.cuda.CUDAGraph()
        with held_tables() as kept, torch.cuda.graph(graph, stream=stream):
            self._result = self._run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self._graph, self._kept = graph, kept

    def _now(self) -> tuple[Any, ...]:
        """What the captured step holds fixed."""
        places = tuple((t.tensor.data_ptr(), t.tensor.shape, t.tensor.dtype) for t in self.targets)
        zo = self.zo
        return places, tuple(zo.eps), tuple(zo.distributions), zo.stochastic_rounding, zo.moved


@contextmanager
def as_if_captured() -> Iterator[None]:
    """Whoever asks `torch.cuda.is_current_stream_capturing` is told yes. transformers asks before it reads an attention mask on
    the host, so the runs before a capture do the work that will be captured.
    """
    before = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = before


def _directions(zo: ZO) -> int:
    """How many directions a step has.

    Raises:
        ValueError: the optimiser's step is not two losses a direction of one block, one after the other.
    """
    if isinstance(zo.method, MeZO):
        count = 1
    elif isinstance(zo.method, SPSA):
        count = zo.method.directions
    else:
        raise ValueError(f"method is {type(zo.method).__name__}; expected MeZO() or SPSA(directions)")
    if len(zo.blocks) != 1 or zo.evaluate != "perturbed" or zo.max_group != 1 or zo.per_example:
        raise ValueError(
            f"{len(zo.blocks)} blocks, evaluate={zo.evaluate!r}, max_group={zo.max_group!r}, per_example={zo.per_example}; "
            'expected one block, evaluate="perturbed", max_group=1 and False: a captured step runs them one after the other'
        )
    if zo.rank is not None:
        raise ValueError(f"rank is {zo.rank}; expected None: a captured step makes noise of full rank")
    if zo.decay.spares:
        raise ValueError(
            "the optimiser has no_decay; a captured step has one decay for all weights: expected no_decay=None"
        )
    return count


def _one(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"loss_fn returned {shape}; expected a tensor with one element, the mean loss of the batch")
    return loss.reshape(1).float()


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
