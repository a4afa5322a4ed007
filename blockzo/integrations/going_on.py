"""Whether a Trainer's run may go on from a checkpoint, or from where the last `train` left it: looked at before a step."""

from __future__ import annotations

import warnings
from typing import Any

from transformers.trainer_utils import has_length

from blockzo import ops
from blockzo.integrations import checkpoints
from blockzo.integrations.checkpoints import Place
from blockzo.journal.file import Journal, JournalError
from blockzo.journal.record import Record
from blockzo.optim.zo import ZO


class GoesOn:
    """Of a Trainer without gradients."""

    args: Any
    model: Any
    zo: ZO | None
    journal: Journal | None
    _again: Record | None

    def _whole(self, given: Any) -> Any:
        """The checkpoint that is asked for; True asks for the last one that is whole.

        Raises:
            JournalError: there is none, or something of it is missing.
        """
        if given is True:
            return checkpoints.last(self.args.output_dir)
        if given and (reason := checkpoints.lacks(given)):
            raise JournalError(
                f"{given} cannot be gone on from: {reason}. Resume from another checkpoint, or load its weights as the model and "
                "train anew in another output_dir"
            )
        return given

    def _here(self) -> Place:
        """Where the run stands."""
        assert self.zo is not None
        return Place(self.zo.step_number, ops.digest(self.model), self._deciding())

    def _check_left(self, left: Place) -> None:
        """Before `train` once more with the journal of the last."""
        assert self.zo is not None
        if self.zo.model is self.model and ops.digest(self.model) != left.digest:
            raise JournalError(
                f"the weights are not those that the last train() left, to which {self.journal.path} leads; pass another "  # type: ignore[union-attr]
                "journal= or output_dir=, for a run that begins at them"
            )

    def _compare(self, before: Record, now: Record) -> None:
        """Of the first step after a checkpoint, where the journal had it already."""
        self._again = None
        if before.step == now.step and before.losses != now.losses:
            warnings.warn(
                f"step {now.step} was done before the run was stopped, with other losses ({before.losses[0]:.6g}, now "
                f"{now.losses[0]:.6g}): the data, their order, or the machine are others; the journal goes on with the new steps",
                stacklevel=2,
            )

    def _checked(self, folder: str) -> Place:
        """The place of a checkpoint, whose weights the model has."""
        place = Place.read(folder)
        assert place is not None
        place.check(folder, self._deciding())
        data, passed = self.train_dataset, int(self.state.epoch or 0)  # type: ignore[attr-defined]
        if passed and not has_length(data) and not self.args.ignore_data_skip:
            raise JournalError(
                f"{folder} lies in pass {passed + 1} over a train_dataset without a length, where the Trainer cannot find the "
                "row to go on with; expected a length (__len__), an iterator that does not end, or ignore_data_skip=True, which "
                "begins at the first row again"
            )
        if (found := ops.digest(self.model)) != place.digest:
            raise JournalError(
                f"{folder} was saved with weights {place.digest}, this model has {found} from it; resume from another "
                "checkpoint, with the model (and the adapters) that the run began with"
            )
        return place

    def _deciding(self) -> dict[str, Any]:
        """What the steps of the run depend on."""
        data = self.train_dataset  # type: ignore[attr-defined]
        return {
            **self.args.deciding(),
            # ranks and micro-batches are the same to a step
            "accumulated": self.args.gradient_accumulation_steps * self.args.world_size,
            "rows of train_dataset": len(data) if has_length(data) else None,
            checkpoints.STEPS: self.state.max_steps,  # type: ignore[attr-defined]
        }
