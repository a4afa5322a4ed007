"""Weights that follow the records of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockzo import ops
from blockzo.federated.protocol.direction_pool import DirectionPool
from blockzo.federated.protocol.planned import RoundPlanner
from blockzo.federated.protocol.settings import RunSettings
from blockzo.journal.record import Record
from blockzo.ops.params import named_tensors
from blockzo.perturb.blocks import Blocks

MOST_HEADER = 1 << 20
"""Bytes of a safetensors file beyond those of its tensors."""


class Weights:
    """The weights of a run on one machine; several clients of a simulation share them.

    Args:
        blocks: the model, cut as the run says; its trainable parameters follow the records.
        base: makes the base weights again (loads a file, say); where None a copy of them is kept, at the cost of their memory.
    """

    def __init__(self, blocks: Blocks, base: Callable[[], Mapping[str, Tensor]] | None = None) -> None:
        self.blocks = blocks
        self.base_digest = ops.digest(blocks.model)
        self.position = 0
        self._base = base
        self._copy = None if base is not None else self.take()
        self._digest: tuple[int, str] | None = (0, self.base_digest)
        self._pool: DirectionPool | None = None
        self.planner: RoundPlanner | None = None

    @property
    def model(self) -> nn.Module:
        return self.blocks.model

    def take(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters."""
        return {name: tensor.detach().clone() for name, tensor in named_tensors(self.blocks.model).items()}

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites the trainable parameters."""
        own = named_tensors(self.blocks.model)
        if set(tensors) != set(own):
            raise ValueError(f"{len(tensors)} tensors were given for the {len(own)} trainable parameters; names differ")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
                found, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, own[name]))
                raise ValueError(f"{name} is {found}; expected {wanted}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def reset(self, snapshot: Mapping[str, Any] | None = None) -> None:
        """Base weights, or those of a snapshot: {"path", "digest", "round"}, a safetensors file, or the sums of a pool.

        Raises:
            ValueError: their digest is not the one that was promised.
        """
        if snapshot is None:
            self._put_base()
            self.position, wanted = 0, self.base_digest
            self._pool = None if self._pool is None else DirectionPool(self._pool.settings)
            self.planner = None if self.planner is None else RoundPlanner(self.planner.settings)
        elif self.planner is not None:
            raise ValueError("a planner learns from all records; a snapshot leaves some out")
        elif "pool" in snapshot:
            if self._pool is None:
                raise ValueError("the sums of a pool were sent, and this run has none")
            self._pool = DirectionPool.restored(self._pool.settings, dict(snapshot))
            self.position = self._pool.position
            self._rebase(self._pool)
            return
        else:
            from safetensors.torch import load_file

            path = Path(snapshot["path"])
            held = sum(t.numel() * t.element_size() for t in named_tensors(self.blocks.model).values())
            if path.stat().st_size > held + MOST_HEADER:
                raise ValueError(f"{path.name} has {path.stat().st_size} bytes; expected at most {held + MOST_HEADER}")
            self.put(load_file(path))
            self.position, wanted = int(snapshot["round"]), str(snapshot["digest"])
        found = ops.digest(self.blocks.model)
        self._digest = (self.position, found)
        if found != wanted:
            raise ValueError(f"the weights that were loaded have the digest {found}; expected {wanted}")

    def replay(self, records: Sequence[Record]) -> None:
        """Applies the records that come after `position`; those before are applied already."""
        new = [record for record in records if record.step >= self.position]
        if not new:
            return
        if [r.step for r in new] != list(range(self.position, self.position + len(new))):
            raise ValueError(f"records {new[0].step} to {new[-1].step} do not follow position {self.position}")
        while new:
            count = len(new)
            if self._pool is not None:
                count = min(len(new), self._pool.settings.rebase - self.position % self._pool.settings.rebase)
                self._pool.add(new[:count])
            ops.replay_(self.blocks.model, new[:count], self.blocks.layout)
            self.position += count
            if self.planner is not None:
                self.planner.observe(new[:count])
            new = new[count:]
            if self._pool is not None and self.position % self._pool.settings.rebase == 0:
                self._rebase(self._pool)

    def begin(self, settings: RunSettings) -> None:
        """Before the first record; a pool's sums are kept from there on, and a planner learns."""
        if settings.planned and (self.planner is None or self.planner.settings != settings):
            if self.position:
                raise ValueError("a planner learns from all records; load the base weights")
            self.planner = RoundPlanner(settings)
        if settings.pool and self._pool is None:
            if self.position:
                raise ValueError("a pool begins at the base; load the base weights")
            self._pool = DirectionPool(settings)

    def _put_base(self) -> None:
        base = self._base() if self._base is not None else self._copy
        assert base is not None
        self.put(base)

    def _rebase(self, pool: DirectionPool) -> None:
        self._put_base()
        ops.replay_(self.blocks.model, [pool.whole()], self.blocks.layout)
        self._digest = None

    def save(self, path: Path) -> None:
        """Writes the trainable parameters as safetensors."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.take().items()}, path)

    def digest(self) -> str:
        if self._digest is None or self._digest[0] != self.position:
            self._digest = (self.position, ops.digest(self.blocks.model))
        return self._digest[1]
