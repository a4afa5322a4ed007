"""What a run of one or several evaluations gave, and how losses are read of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from blockzo.ops.distributed import is_dtensor
from blockzo.ops.packed import upload
from blockzo.perturb.losses import as_tensor


@dataclass(frozen=True)
class Activations:
    """What a run returned: leaves of a pytree; `own[i]` where leaf i has a leading group dimension."""

    leaves: list[Any]
    own: list[bool]
    spec: TreeSpec

    def take(self, groups: Sequence[int]) -> Activations:
        """Those of the groups given, in that order; one that all of them share has no group dimension."""
        if not any(self.own):
            return self
        if len(set(groups)) == 1:
            leaves = [leaf[groups[0]] if own else leaf for leaf, own in zip(self.leaves, self.own, strict=True)]
            return Activations(leaves, [False] * len(leaves), self.spec)
        first = self._owned()[0]
        if list(groups) == list(range(first.shape[0])):
            return self
        index = {device: upload(torch.tensor(groups), device) for device in {leaf.device for leaf in self._owned()}}
        leaves = [
            leaf.index_select(0, index[leaf.device]) if own else leaf
            for leaf, own in zip(self.leaves, self.own, strict=True)
        ]
        return Activations(leaves, self.own, self.spec)

    def _owned(self) -> list[Tensor]:
        return [leaf for leaf, own in zip(self.leaves, self.own, strict=True) if own]

    @property
    def nbytes(self) -> int:
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves if isinstance(leaf, Tensor))

    def tree(self) -> Any:
        return tree_unflatten(self.leaves, self.spec)


def split_drift(result: Activations) -> tuple[Activations, Tensor]:
    """What the loss function gave, and how far the inputs of its layers drifted (`passes.Kept`), from the pair of both."""
    value, drift = result.tree()
    leaves, spec = tree_flatten(value)
    return Activations(leaves, result.own[:-1], spec), drift


def read_together(found: Sequence[Tensor]) -> list[Any]:
    """As lists, by one copy from the device: it is the only time that a step waits for it."""
    if not found:
        return []
    numbers = torch.cat([tensor.reshape(-1).to(found[0].device) for tensor in found]).cpu()
    parts = numbers.split([tensor.numel() for tensor in found])
    return [part.view(tensor.shape).tolist() for part, tensor in zip(parts, found, strict=True)]


def group_losses(result: Activations, groups: int) -> Tensor:
    """The loss of each group, float32 [groups], where the loss function left it.

    Raises:
        ValueError: it is not one number a group.
    """
    value = as_tensor(result.leaves[0] if len(result.leaves) == 1 else result.tree())
    own = result.own == [True]
    if not isinstance(value, Tensor) or value.numel() != (groups if own else 1):
        shape = tuple(value.shape[1:] if own else value.shape) if isinstance(value, Tensor) else None
        found = f"a {type(value).__name__}" if shape is None else f"shape {shape}"
        raise ValueError(
            f"loss_fn returned {found}; expected a tensor with one element (or a number), the mean loss of the batch"
        )
    if is_dtensor(value):
        # tensor parallelism may leave a loss as one; all ranks are here
        value = value.full_tensor()  # type: ignore[attr-defined]
    # a copy: it is read at the end, and a model may write its next loss to the same place
    return value.detach().reshape(-1).expand(groups).to(torch.float32, copy=True)
