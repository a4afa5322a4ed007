"""Processes of one owner (torch.distributed) that act as one: numbers from all to all, and errors that all raise alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from blockzo.journal.file import JournalError

T = TypeVar("T")
_SAME: dict[str, type[Exception]] = {"ValueError": ValueError, "JournalError": JournalError}


def check_alone(independent: bool) -> None:
    """Raises ValueError where this process is one of several ranks that would each go their own way."""
    if independent or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        return
    raise ValueError(
        f"blockzo.ZO in a process group of {dist.get_world_size()} ranks, which exchange nothing and would end with different "
        "weights; expected blockzo.DistributedZO, or independent_ranks=True where every rank trains a model of its own"
    )


class Ranks:
    """A process group.

    Args:
        group: of torch.distributed; the default group where None.

    Raises:
        RuntimeError: torch.distributed is not initialised, or this process is not in the group.
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised; start the program with torchrun and call "
                'torch.distributed.init_process_group("gloo") (or "nccl") first'
            )
        self.group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RuntimeError("this process is not in the group; expected one of its ranks")
        self.device = torch.device("cpu")
        if dist.get_backend(group) == "nccl":
            # nccl carries tensors of GPUs alone
            self.device = torch.device("cuda", torch.cuda.current_device())

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in the order of ranks; each gives as many. float64, so that float32 losses stay exact."""
        own = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        found = torch.empty((self.count, len(values)), dtype=torch.float64, device=self.device)
        dist.all_gather(list(found), own, group=self.group)
        rows: list[list[float]] = found.tolist()
        return rows

    def objects(self, value: T) -> list[T]:
        """An object of every rank; pickled, so only among processes of one owner."""
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here, once it has succeeded on every rank.

        Raises:
            ValueError, JournalError, RuntimeError: on every rank the error of the first that failed.
        """
        failed: Exception | None = None
        try:
            value = work()
        except Exception as error:
            failed = error
        self.agree(failed)
        return value

    def agree(self, failed: Exception | None) -> None:
        """Every rank calls it, with its own error or None; where there is one, all raise the first."""
        if any(row[0] for row in self.gather([float(failed is not None)])):
            self.fail(failed)

    def fail(self, failed: Exception | None) -> None:
        """As `agree`, when all ranks know already that one failed."""
        told = self.objects(None if failed is None else (type(failed).__name__, str(failed)))
        for rank, found in enumerate(told):
            if found is not None:
                kind, text = found
                same = _SAME.get(kind)
                raise (same or RuntimeError)(f"rank {rank}: {text if same else f'{kind}: {text}'}") from failed

    def same(self, facts: dict[str, Any]) -> None:
        """Raises ValueError, on every rank, where a fact differs from that of rank 0."""
        every = self.objects(facts)
        for name, value in every[0].items():
            for rank, other in enumerate(every):
                if other[name] != value:
                    raise ValueError(
                        f"{name} is {str(other[name])[:200]} on rank {rank}, {str(value)[:200]} on rank 0; expected the same "
                        "on every rank"
                    )
