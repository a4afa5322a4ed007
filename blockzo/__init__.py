"""blockzo: zeroth-order fine-tuning of language models with noise that exists only in registers."""

from blockzo import ops
from blockzo.noise import Noise, stream_id
from blockzo.ops import digest, perturb_, project, replay_, shift_, update_
from blockzo.record import BlockUpdate, Record

__version__ = "0.1.0"
__all__ = [
    "BlockUpdate",
    "Noise",
    "Record",
    "digest",
    "ops",
    "perturb_",
    "project",
    "replay_",
    "shift_",
    "stream_id",
    "update_",
]
