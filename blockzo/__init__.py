"""blockzo: zeroth-order fine-tuning of language models with noise that exists only in registers."""

from blockzo import ops
from blockzo.blocks import Blocks
from blockzo.cost import Cost, cost
from blockzo.estimators import FZOO, SPSA, SPZO, Decoupled, MeZO, OneSided, Tree
from blockzo.groups import perturbed_losses
from blockzo.journal import Journal, JournalError
from blockzo.noise import Noise, stream_id
from blockzo.ops import digest, perturb_, project, replay_, shift_, update_
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
    "Journal",
    "JournalError",
    "MeZO",
    "Noise",
    "OneSided",
    "Record",
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
