"""Records of an optimiser: each is written to the journal, then applied; and how a journal is gone on with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from blockzo import ops
from blockzo.journal.file import Journal, JournalError
from blockzo.journal.record import Record, check_record
from blockzo.methods.auto import Auto
from blockzo.methods.base import Method
from blockzo.methods.planner import Planner
from blockzo.optim.decay import Decay
from blockzo.optim.step import StepResult
from blockzo.perturb.blocks import Blocks


class Journaled:
    """What `ZO` does with records."""

    model: nn.Module
    blocks: Blocks
    method: Method | Auto
    planner: Planner | None
    eps: list[float]
    per_example: bool
    decay: Decay
    evaluate: str
    journal: Journal | None
    step_number: int

    @property
    def layout(self) -> dict[str, int]:
        """Canonical name of every trainable parameter -> its block in records: what a journal is made with."""
        return self.decay.layout

    def commit(self, record: Record | StepResult) -> None:
        """Writes a record (its step must be the next one) to the journal, then applies it; the same bits as `step`."""
        self.replay([record.record if isinstance(record, StepResult) else record])

    apply = commit
    """Its older name."""

    def replay(self, records: Sequence[Record]) -> None:
        """Writes consecutive records to the journal, then applies them in one pass over the weights."""
        self._check_next(records)
        for record in records:
            self._write(record)
        self._replay(records)

    def _check_next(self, records: Sequence[Record]) -> None:
        for number, record in enumerate(records, self.step_number):
            if record.step != number:
                raise ValueError(f"the record holds step {record.step}; expected step {number}, the next one")
            if len(record.blocks) != self.decay.blocks:
                raise ValueError(
                    f"the record has {len(record.blocks)} blocks, records of this model {self.decay.blocks}"
                )

    def _replay(self, records: Sequence[Record]) -> None:
        self._check_next(records)
        ops.replay_(self.model, records, self.layout)
        self._passed(records)

    def _passed(self, records: Sequence[Record]) -> None:
        """The weights are those after these records."""
        self.step_number += len(records)
        if self.planner is not None:
            for record in records:
                self.planner.observe(self.decay.of_blocks(record))

    def _write(self, record: Record) -> None:
        check_record(record, self.decay.blocks)
        if self.journal is not None:
            self.journal.append(record)

    def attach(self, journal: Journal, step: int | None = None) -> None:
        """Goes on with a journal: what it holds is passed, and every later step is written to it.

        Args:
            journal: of `Journal.create(...)` or `Journal.resume(...)`.
            step: the weights are those before this step, as in a checkpoint, and the journal ends there
                (`journal.truncate(step)`). Where None: they are those it begins at, and its steps are replayed.

        Raises:
            JournalError: it is of other weights (where it holds their digest), blocks or settings, or ends elsewhere.
        """
        self._attach(journal, step)

    def _attach(self, journal: Journal, step: int | None = None) -> None:
        if journal.layout != self.layout:
            raise JournalError(
                "the journal's layout (parameter -> block) is not that of this model and its blocks; "
                "create it with layout=blocks.layout (zo.layout with no_decay), or cut the model as the journal says"
            )
        if journal.exact and self.evaluate == "in_place":
            raise JournalError(
                "in-place evaluation does not restore weights exactly, so replay cannot give training's bits; "
                'create the journal with exact=False, or use evaluate="perturbed"'
            )
        records = journal.records()
        if step not in (None, journal.next_step):
            raise JournalError(
                f"the weights are those before step {step}, the journal ends before step {journal.next_step}; "
                f"expected the same: journal.truncate({step}) drops what a resumed run will do again"
            )
        named = records[-1].digest if step is not None and records else journal.base_digest
        if named is not None:
            found = ops.digest(self.model)
            if found != named:
                raise JournalError(
                    f"the journal {'begins' if named == journal.base_digest else 'ends'} at weights {named}, this model has "
                    f"{found}; load the {'base model' if step is None else 'checkpoint'} it names"
                )
        self.take_plan(journal)
        self.step_number = journal.start
        if step is None:
            self._replay(records)
        else:
            self._passed(records)
        self.journal = journal

    def take_plan(self, journal: Journal) -> None:
        """Before records of a journal are replayed: what its planner had measured. Nothing for other methods."""
        if isinstance(self.method, Auto):
            if journal.plan is not None:
                self._start_planner(journal.plan["costs"], bool(journal.plan.get("whole", False)))
            elif len(journal):
                raise JournalError('the journal holds steps but no plan; it was not written with method="auto"')

    def _start_planner(self, costs: Sequence[float], whole: bool = False) -> None:
        assert isinstance(self.method, Auto)
        if len(costs) != len(self.blocks):
            raise ValueError(f"costs has {len(costs)} entries for {len(self.blocks)} blocks; expected one a block")
        trainable = [block in set(self.blocks.layout.values()) for block in range(len(self.blocks))]
        self.planner = Planner(self.method, costs, trainable, self.eps, whole, self.per_example)
