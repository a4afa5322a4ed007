"""The state of torch's generator when an epoch began: samplers draw the order of its rows then, and a resumed run draws it again.

The Trainer's checkpoints have the state of their own moment alone, so `train_sampling_strategy="group_by_length"`, and shuffling
without accelerate's seedable sampler, gave a resumed epoch other rows than the epoch that was stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

FILE = "zo_epoch.pt"


class EpochBegin(TrainerCallback):
    """Keeps the state as each epoch begins, and sets it again in the epoch that a checkpoint lies in."""

    def __init__(self) -> None:
        self._begun, self._state = 0, torch.get_rng_state()
        self._resumed: dict[str, Any] | None = None

    @classmethod
    def of(cls, trainer: Any) -> EpochBegin:
        """That of a Trainer."""
        found: EpochBegin = next(one for one in trainer.callback_handler.callbacks if isinstance(one, cls))
        return found

    def write(self, folder: str) -> None:
        torch.save({"epoch": self._begun, "state": self._state}, Path(folder, FILE))

    def read(self, folder: str | None) -> None:
        """For the epoch that begins next; nothing where a checkpoint has no such state."""
        file = None if folder is None else Path(folder, FILE)
        self._resumed = torch.load(file, weights_only=True) if file is not None and file.exists() else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        self._begun = int(state.epoch or 0)
        resumed, self._resumed = self._resumed, None
        # at the end of an epoch, the Trainer itself sets the state of the checkpoint
        if resumed is not None and resumed["epoch"] == self._begun:
            torch.set_rng_state(resumed["state"])
        self._state = torch.get_rng_state()
