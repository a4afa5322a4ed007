"""blockzo: zeroth-order fine-tuning of language models with noise that exists only in registers.

Names are loaded at first use: a server or a command that needs no model does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockzo import ops
    from blockzo.blocks import Blocks
    from blockzo.costs import Cost, cost
    from blockzo.distributed import DistributedZO
    from blockzo.estimators import FZOO, SPSA, SPZO, Decoupled, MeZO, OneSided, Tree
    from blockzo.graphed import GraphedStep
    from blockzo.groups import perturbed_losses
    from blockzo.journal import Journal, JournalError
    from blockzo.micro_batches import MicroBatches
    from blockzo.noise import Noise, stream_id
    from blockzo.ops import perturb_, project, replay_, shift_, update_
    from blockzo.ops.digest import digest
    from blockzo.ops.shards import Shard
    from blockzo.optim import ZO, StepResult
    from blockzo.perturb import perturbed
    from blockzo.planner import Auto
    from blockzo.record import BlockUpdate, Record

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
    "ops",
    "perturb_",
    "perturbed",
    "perturbed_losses",
    "project",
    "replay_",
    "shift_",
    "stream_id",
    "update_",
]

_HOMES = {
    "Auto": "blockzo.planner",
    "BlockUpdate": "blockzo.record",
    "Blocks": "blockzo.blocks",
    "Cost": "blockzo.costs",
    "Decoupled": "blockzo.estimators",
    "DistributedZO": "blockzo.distributed",
    "FZOO": "blockzo.estimators",
    "GraphedStep": "blockzo.graphed",
    "Journal": "blockzo.journal",
    "JournalError": "blockzo.journal",
    "MeZO": "blockzo.estimators",
    "MicroBatches": "blockzo.micro_batches",
    "Noise": "blockzo.noise",
    "OneSided": "blockzo.estimators",
    "Record": "blockzo.record",
    "SPSA": "blockzo.estimators",
    "SPZO": "blockzo.estimators",
    "Shard": "blockzo.ops.shards",
    "StepResult": "blockzo.optim",
    "Tree": "blockzo.estimators",
    "ZO": "blockzo.optim",
    "cost": "blockzo.costs",
    "digest": "blockzo.ops.digest",
    "perturb_": "blockzo.ops",
    "perturbed": "blockzo.perturb",
    "perturbed_losses": "blockzo.groups",
    "project": "blockzo.ops",
    "replay_": "blockzo.ops",
    "shift_": "blockzo.ops",
    "stream_id": "blockzo.noise",
    "update_": "blockzo.ops",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("blockzo.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'blockzo' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
