"""From settings to everything a run needs: data, model, prompts, losses, blocks. Cheap checks come before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from blockzo import Blocks
from blockzo.finetune.data.completion_task import CompletionTask
from blockzo.finetune.data.completions import CompletionEncoder
from blockzo.finetune.data.order import BatchOrder, shuffled
from blockzo.finetune.data.prompts import Encoded, Encoder, begin_token
from blockzo.finetune.data.tasks import PromptTask, find_written_task
from blockzo.finetune.errors import UserError, about
from blockzo.finetune.generation import MOST_TOKENS, Writer
from blockzo.finetune.metrics import HeldOutScores, scores
from blockzo.finetune.models.adapter_folder import base_of, is_adapter, with_adapter
from blockzo.finetune.models.devices import find_device, settled
from blockzo.finetune.models.loading import Loaded, load, resolve
from blockzo.finetune.scoring import Scorer
from blockzo.finetune.settings import Settings
from blockzo.finetune.sources import Owners, Source, check_fits, read_task, read_text, task_of
from blockzo.finetune.windows import encode_texts
from blockzo.optim.cutting import fine_blocks

Say = Callable[[str], None]


@dataclass
class Prepared:
    loaded: Loaded
    task: PromptTask | None
    written: CompletionTask | None
    scorer: Scorer
    train: Encoded
    held_out: Encoded
    source: Source
    notes: list[str]
    parts: list[list[int]] | None = None
    """Rows of `train` that each owner has, where `prepare` was told of owners."""

    @property
    def model(self) -> Any:
        return self.loaded.model

    def blocks(self, settings: Settings) -> Blocks:
        example = self.scorer.inputs(self.scorer.batch(self.train, [0]))
        boundaries = settings.boundaries()
        if boundaries == "fine":
            return fine_blocks(self.model, example)
        with about("--blocks" if settings.blocks is not None else "--split"):
            return Blocks(self.model, boundaries, example=example)

    def order(self, settings: Settings) -> BatchOrder:
        return BatchOrder(self.train.lengths, settings.batch, settings.seed, settings.pool)

    def evaluation_rows(self, settings: Settings) -> list[int]:
        """Held-out rows of the evaluations during the run."""
        count = len(self.held_out.ids)
        return sorted(shuffled(count, settings.seed, "evaluation")[: settings.eval_rows or count])

    def scores(self, values: Tensor, rows: Sequence[int]) -> HeldOutScores:
        """Scores from what `measure` gave for these held-out rows."""
        writer = self.scorer.writer
        metrics = () if self.task is None else self.task.metrics
        metrics = metrics if writer is None else writer.names
        return scores(self.scorer.kind, values, [self.held_out.labels[row] for row in rows], metrics)

    def data_facts(self) -> dict[str, Any]:
        """What the journal's header and the summary say of the data."""
        return {
            "train": {
                "path": str(self.source.train_path),
                "rows": len(self.train.ids),
                "truncated": self.train.truncated,
                "digest": self.train.digest(),
            },
            "validation": {
                "path": str(self.source.validation_path),
                "rows": len(self.held_out.ids),
                "truncated": self.held_out.truncated,
                "digest": self.held_out.digest(),
            },
        }


def prepare(
    settings: Settings,
    say: Say = lambda text: None,
    fallback: str | None = None,
    training: bool = True,
    owners: Owners | None = None,
    base: str | None = None,
) -> Prepared:
    """Reads the data, loads the model, encodes the rows.

    Args:
        say: told of every longer action.
        fallback: see `models.resolve`.
        training: without it, training rows are read only where held-out rows have to be taken from them, and the model may be a
            folder of an adapter.
        owners: whose the training rows are; windows of plain text then hold text of one owner alone.
        base: model of such an adapter, where not the one that its folder names.

    Raises:
        UserError: data, model and settings do not fit; the message names file and line where there is one.
    """
    notes: list[str] = []
    written = find_written_task(settings.task, settings.template, settings.metrics)
    task = None if settings.task == "lm" or written is not None else task_of(settings)
    check_fits(settings, written)
    asked = task or written
    if asked is None:
        source = read_text(settings, training, owners)
    else:
        source = read_task(settings, asked, notes, training, owners)
    parts = source.parts
    classes = 0 if task is None else len(task.words)
    with about("--model"):
        path = resolve(settings.model, fallback, say)
        adapter = Path(path) if not training and is_adapter(path) else None
        if base is not None and adapter is None:
            raise UserError(f"--base names the model of an adapter, and {path} holds none; leave --base out")
        if adapter is not None:
            path = resolve(base or base_of(adapter), fallback, say)
        say(f"loading {path}")
        loaded = load(
            path,
            settled(settings).dtype,
            settings.head,
            classes,
            settings.seed,
            settings.task,
            labels=() if task is None else tuple(task.words),
            trust_remote_code=settings.trust_remote_code,
            device=find_device(settings.device),
            peft=settings.peft,
            trainable=settings.trainable,
            quantize=settings.quantize,
        )
        if adapter is not None:
            say(f"adding {adapter}")
            loaded.model = with_adapter(loaded.model, adapter, path)
    notes += loaded.notes
    train: Encoded
    held_out: Encoded
    begin = begin_token(loaded.tokenizer, loaded.kind)
    limit = _limit(settings, loaded, notes)
    pad = loaded.tokenizer.pad_token_id
    pad = pad if pad is not None else 0
    if written is not None:
        encode = CompletionEncoder(
            loaded.tokenizer, written, limit, settings.overflow, begin, settings.control_tokens
        ).encode
        say(f"encoding {len(source.train) if training else 0} training and {len(source.validation)} held-out rows")
        train, held_out = encode(source.train if training else []), encode(source.validation)
        most = settings.max_new_tokens or MOST_TOKENS
        writer = Writer(loaded.tokenizer, written.metrics, written.stop, most, loaded.limit, loaded.device)
        scorer = Scorer("completion", pad=pad, device=loaded.device, writer=writer)
        scorer.settle(loaded.model, held_out)
    elif task is None:
        scorer = Scorer("lm", pad=pad, device=loaded.device)
        length = min(limit, settings.max_length or 256)
        train, held_out, texts = encode_texts(settings, source, loaded.tokenizer, length, begin)
        parts = None if owners is None else _parts(texts, len(source.train_texts), notes)
    else:
        encoder = Encoder(loaded.tokenizer, task, loaded.kind, limit, settings.overflow, begin, settings.control_tokens)
        words, told = ([], []) if loaded.kind == "head" else encoder.label_ids()
        notes += told
        scorer = Scorer(loaded.kind, words, pad, loaded.device)
        say(f"encoding {len(source.train) if training else 0} training and {len(source.validation)} held-out rows")
        train, held_out = encoder.encode(source.train if training else []), encoder.encode(source.validation)
        scorer.settle(loaded.model, held_out)
    for name, part in (("training", train), ("held-out", held_out)):
        if part.truncated:
            notes.append(
                f"{part.truncated} of {len(part.ids)} {name} rows had more than {limit} tokens and were shortened "
                "(--max-length, or --overflow error to refuse them)"
            )
    if training and settings.batch > len(train.ids):
        notes.append(
            f"there are only {len(train.ids)} training rows for --batch {settings.batch}; every batch holds them all"
        )
    return Prepared(loaded, task, written, scorer, train, held_out, source, notes, parts)


def _limit(settings: Settings, loaded: Loaded, notes: list[str]) -> int:
    if settings.max_length is None:
        return loaded.limit
    if settings.max_length > loaded.limit:
        raise UserError(
            f"--max-length is {settings.max_length}, the model takes at most {loaded.limit} tokens; give that or less"
        )
    return settings.max_length


def _parts(texts: Sequence[int], owners: int, notes: list[str]) -> list[list[int]]:
    """Windows of each owner, from whose each is; who has none is left out."""
    found: dict[int, list[int]] = {}
    for window, owner in enumerate(texts):
        found.setdefault(owner, []).append(window)
    if len(found) < owners:
        notes.append(f"{owners - len(found)} of {owners} owners have no window of text to train on and are left out")
    return [found[owner] for owner in sorted(found)]
