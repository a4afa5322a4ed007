"""`blockzo replay` of a journal that a Trainer wrote: the model, or the adapter, from its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.devices import find_device
from blockzo.finetune.models.loading import resolve
from blockzo.finetune.models.transformers_library import TORCH_DTYPES, attempt, quiet_transformers
from blockzo.finetune.progress import Reporter
from blockzo.finetune.rebuild import applied, begins_at, opened
from blockzo.integrations.adapter_notes import METADATA
from blockzo.integrations.model_notes import MODEL
from blockzo.journal.file import Journal
from blockzo.journal.outside import shown


def replay(
    base: str,
    path: Path,
    out: Path,
    partial: bool = False,
    reporter: Reporter | None = None,
    trust_remote_code: bool = False,
    steps: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """As `blockzo.finetune.replay`; `out` holds the whole model, or an adapter of PEFT alone where one was trained.

    Raises:
        JournalError: the journal is damaged or not finished, `base` has other weights, or the result has other bits.
        UserError: `base` cannot be loaded; `out` exists or cannot be written.
    """
    reporter = reporter or Reporter()
    journal, count = opened(path, out, partial, steps)
    source = resolve(base, None, reporter.say)
    reporter.say(f"loading {source}")
    model = _load(source, journal, trust_remote_code).to(find_device(device))
    if METADATA in journal.metadata:
        from blockzo.integrations.peft import begun

        model = begun(model, journal)
    found = begins_at(journal, base, model)
    told = applied(journal, model, count, out, lambda place: _save(model, source, place), reporter)
    return {**told, "base": base, "base_digest": found, "checked": "weights"}


def _load(source: str, journal: Journal, trust_remote_code: bool) -> Any:
    """The base model, of the class and dtype that the journal names.

    Raises:
        UserError: it names none of transformers', or the model cannot be loaded.
    """
    transformers = quiet_transformers()
    told = journal.metadata.get(MODEL)
    named = told.get("class") if isinstance(told, Mapping) else None
    kind: Any = getattr(transformers, named, None) if isinstance(named, str) else None
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not known:
        raise UserError(
            f"{journal.path} is of a model of the class {shown(named)}, which is none of transformers'; load it in Python, and "
            "apply the records with blockzo.replay_ (docs/trainer.md)"
        )
    dtype = TORCH_DTYPES.get(str(told.get("dtype"))) if isinstance(told, Mapping) else None
    return attempt(source, lambda: kind.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code))


def _save(model: Any, source: str, folder: Path) -> None:
    import transformers

    model.save_pretrained(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        # a model of other data than text
        return
    tokenizer.save_pretrained(folder)
