"""blockzo: zeroth-order fine-tuning of language models with noise that exists only in registers.

Names are loaded at first use: a server or a command that needs no model does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from blockzo.moved import find_moved

if TYPE_CHECKING:
    from blockzo import ops
    from blockzo.journal.file import Journal, JournalError
    from blockzo.journal.record import BlockUpdate, Record
    from blockzo.methods.auto import Auto
    from blockzo.methods.decoupled import Decoupled
    from blockzo.methods.fzoo import FZOO
    from blockzo.methods.levels import Tree
    from blockzo.methods.spzo import SPZO
    from blockzo.methods.whole import SPSA, MeZO, OneSided
    from blockzo.noise import Noise, stream_id
    from blockzo.ops import fill_, perturb_, project, replay_, shift_, update_
    from blockzo.ops.digest import digest
    from blockzo.ops.shards import Shard
    from blockzo.optim.costs import Cost, cost
    from blockzo.optim.distributed import DistributedZO
    from blockzo.optim.first_rate import suggest_lr
    from blockzo.optim.graphed import GraphedStep
    from blockzo.optim.micro_batches import MicroBatches
    from blockzo.optim.step import StepResult
    from blockzo.optim.zo import ZO
    from blockzo.perturb import perturbed
    from blockzo.perturb.blocks import Blocks
    from blockzo.perturb.groups import perturbed_losses

__version__ = "0.1.0"
__all__ = [
    "FZOO",
    "SPSA",
    "SPZO",
    "ZO",
    "Auto",
    "BlockUpdate",
    "Blocks",
    "Cost",
    "Decoupled",
    "DistributedZO",
    "GraphedStep",
    "Journal",
    "JournalError",
    "MeZO",
    "MicroBatches",
    "Noise",
    "OneSided",
    "Record",
    "Shard",
    "StepResult",
    "Tree",
    "cost",
    "digest",
    "fill_",
    "ops",
    "perturb_",
    "perturbed",
    "perturbed_losses",
    "project",
    "replay_",
    "shift_",
    "stream_id",
    "suggest_lr",
    "update_",
]

_HOMES = {
    "Auto": "blockzo.methods.auto",
    "BlockUpdate": "blockzo.journal.record",
    "Blocks": "blockzo.perturb.blocks",
    "Cost": "blockzo.optim.costs",
    "Decoupled": "blockzo.methods.decoupled",
    "DistributedZO": "blockzo.optim.distributed",
    "FZOO": "blockzo.methods.fzoo",
    "GraphedStep": "blockzo.optim.graphed",
    "Journal": "blockzo.journal.file",
    "JournalError": "blockzo.journal.file",
    "MeZO": "blockzo.methods.whole",
    "MicroBatches": "blockzo.optim.micro_batches",
    "Noise": "blockzo.noise",
    "OneSided": "blockzo.methods.whole",
    "Record": "blockzo.journal.record",
    "SPSA": "blockzo.methods.whole",
    "SPZO": "blockzo.methods.spzo",
    "Shard": "blockzo.ops.shards",
    "StepResult": "blockzo.optim.step",
    "Tree": "blockzo.methods.levels",
    "ZO": "blockzo.optim.zo",
    "cost": "blockzo.optim.costs",
    "digest": "blockzo.ops.digest",
    "fill_": "blockzo.ops",
    "perturb_": "blockzo.ops",
    "perturbed": "blockzo.perturb",
    "perturbed_losses": "blockzo.perturb.groups",
    "project": "blockzo.ops",
    "replay_": "blockzo.ops",
    "shift_": "blockzo.ops",
    "stream_id": "blockzo.noise",
    "suggest_lr": "blockzo.optim.first_rate",
    "update_": "blockzo.ops",
}


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are loaded at first use, from the modules that `homes` says."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; expected one of {', '.join(homes)}")
        return getattr(import_module(homes[name]), name)

    return find


_find = names_of(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("blockzo.ops")
    if name not in _HOMES:
        from blockzo.methods import METHODS

        if name in METHODS:
            return METHODS[name]
    value = globals()[name] = _find(name)
    return value


find_moved()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
