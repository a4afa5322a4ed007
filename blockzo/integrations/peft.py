"""Adapters of PEFT whose first weights come from a seed of the noise contract: base, seed and journal rebuild them anywhere.

PEFT draws what an adapter begins with from torch's generator, whose numbers depend on device and version. Here each draw, in the
order in which PEFT makes them, is made by the contract; distributions stay those that PEFT chose for its kind of adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from blockzo import ops
from blockzo.finetune.models.seeded import seeded
from blockzo.integrations.adapter_notes import METADATA, NOTE, note_of
from blockzo.journal.file import Journal, JournalError
from blockzo.journal.outside import shown

__all__ = ["adapter", "note_of", "rebuild", "seeded"]


def adapter(base: nn.Module, config: PeftConfig, seed: int = 0, **options: Any) -> PeftModel:
    """`peft.get_peft_model(base, config)` with first weights from a seed, which `rebuild` makes again from a journal.

    Args:
        base: changed as PEFT does: its layers are wrapped.
        seed: of the noise contract, in [0, 2**64).
        options: those of `get_peft_model`.

    Raises:
        ValueError: the adapter draws numbers that the contract does not make.
    """
    note = {"config": _as_json(config), "seed": seed, "options": dict(options)}
    with seeded(seed):
        model: PeftModel = get_peft_model(base, config, **options)
    setattr(model, NOTE, note)
    return model


def begun(base: nn.Module, journal: Journal) -> PeftModel:
    """The adapter that a journal begins with, on its base, whose layers are wrapped.

    Raises:
        JournalError: the journal does not say how the adapter was made.
    """
    note = journal.metadata.get(METADATA)
    if not isinstance(note, Mapping) or not {"config", "seed"} <= set(note):
        raise JournalError(
            f"{journal.path} holds {shown(note)} as adapter; expected how it was made: train a model of "
            "blockzo.integrations.peft.adapter, and put note_of(model) into the journal's metadata"
        )
    if note["config"].get("tokenizer_kwargs") or note["config"].get("auto_mapping"):
        # a journal may come from anyone, and these may load code
        raise JournalError(
            f"{journal.path} names code or a tokenizer to load; make the adapter yourself and replay the records"
        )
    return adapter(base, _from_json(note["config"]), note["seed"], **note.get("options", {}))


def rebuild(base: nn.Module, journal: Journal) -> PeftModel:
    """The trained adapter on its base, from the base and a journal of some KB, bit for bit.

    Args:
        base: the model that training began with, with the same weights; its layers are wrapped.
        journal: with `note_of(model)` in its metadata, as the Trainer writes it.

    Raises:
        JournalError: the journal does not say how the adapter was made, or the weights before or after its steps are others.
    """
    model = begun(base, journal)
    _compare(
        model,
        journal.base_digest,
        "before the first step; expected the base model, and the version of peft, of training",
    )
    ops.replay_(model, journal.records(), journal.layout)
    _compare(model, journal.final_digest, "after the last step; the journal is of another model")
    return model


def _compare(model: nn.Module, digest: str | None, what: str) -> None:
    if digest is not None and (found := ops.digest(model)) != digest:
        raise JournalError(f"the weights are {found}, the journal says {digest} {what}")


def _as_json(config: PeftConfig) -> dict[str, Any]:
    """As PEFT saves it."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        found: dict[str, Any] = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    return found


def _from_json(config: Mapping[str, Any]) -> PeftConfig:
    with TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        return PeftConfig.from_pretrained(folder)
