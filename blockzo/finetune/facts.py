"""What the header of a run's journal says, once it has been checked: it may have come from anyone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.identity import Identity, identity_of
from blockzo.finetune.models.loading import Loaded
from blockzo.journal.file import Journal
from blockzo.journal.outside import Count, Refusal, Sentence, Word, build


@dataclass(frozen=True)
class DataFacts:
    path: Sentence
    rows: Count
    digest: Word
    truncated: Count = 0


@dataclass(frozen=True)
class RunFacts:
    """`settings` of the fine-tune, or `simulation` with those of a simulation, and `parts`, a digest of its clients' rows;
    `identity` and `parts` are None in journals from before them."""

    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[Word, DataFacts] = field(default_factory=dict)
    source: Sentence | None = None
    classes: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    threads: Annotated[int, Meta(ge=1, le=1 << 12)] | None = None
    device: Word | None = None
    versions: dict[Word, Word] = field(default_factory=dict)
    identity: Identity | None = None
    simulation: dict[Word, dict[str, Any]] | None = None
    parts: Word | None = None

    @property
    def of_the_model(self) -> dict[str, Any]:
        """The settings by which the model was loaded and trained, of a fine-tune or of a simulation."""
        return self.settings or (self.simulation or {}).get("settings", {})

    @property
    def pooled(self) -> bool:
        """Of a simulation with a finite pool of directions?"""
        return bool((self.simulation or {}).get("federation", {}).get("seed_pool"))

    @classmethod
    def of(cls, journal: Journal) -> RunFacts:
        """
        Raises:
            UserError: the header is not that of a run.
        """
        try:
            return build(cls, journal.metadata, "its header", exact=False)
        except Refusal as error:
            raise UserError(f"{journal.path} is not the journal of a run of this blockzo: {error}") from None

    def check_data(self, now: Mapping[str, Any]) -> None:
        """
        Args:
            now: what `Prepared.data_facts` gives.

        Raises:
            UserError: names the part whose rows differ.
        """
        for name, before in self.data.items():
            found = now.get(name)
            if found is not None and before.digest != found["digest"]:
                raise UserError(
                    f"the {name} data differ from those of the journal: {found['path']} has {found['rows']} rows (digest "
                    f"{found['digest'][:12]}), it was {before.path} with {before.rows} rows (digest {before.digest[:12]}); give "
                    f"the same data with --{name}"
                )

    def check_model(self, loaded: Loaded) -> str | None:
        """Whether the model, which has the right weights, is also built as it was, with the same tokenizer.

        Returns:
            What could not be checked, or None.

        Raises:
            UserError: names the settings and files that differ.
        """
        if self.identity is None:
            return (
                "the journal does not say which configuration and tokenizer the run had, so only the weights were compared: a "
                "changed config.json or tokenizer would not be noticed"
            )
        import transformers

        same = self.versions.get("transformers", transformers.__version__) == transformers.__version__
        changes = self.identity.changes(identity_of(loaded), same)
        if changes:
            told = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise UserError(
                f"{loaded.source} has the weights that the run began with, but is not the same model: {told}. Give the model as "
                "it was"
            )
        return None
