"""Plain texts as windows of tokens, and which of these are held out."""

from __future__ import annotations

from typing import Any

from blockzo.finetune.data.order import shuffled
from blockzo.finetune.data.prompts import Encoded, windows
from blockzo.finetune.errors import UserError
from blockzo.finetune.settings import Settings
from blockzo.finetune.sources import Source

HOLDOUT = 0.1
"""Share of the windows that is held out where no validation file is given."""


def encode_texts(
    settings: Settings, source: Source, tokenizer: Any, length: int, begin: int | None
) -> tuple[Encoded, Encoded, list[int]]:
    """Windows to train on, windows that are held out, and the number of the text that each of the first is of.

    Raises:
        UserError: too little text.
    """
    control = settings.control_tokens
    texts = [windows(lines, tokenizer, length, begin, control) for lines in source.train_texts]
    every = _joined(texts)
    owner = [number for number, text in enumerate(texts) for _ in text.ids]
    if source.validation_lines:
        held_out, kept = windows(source.validation_lines, tokenizer, length, begin, control), list(range(len(owner)))
    else:
        held = _held(settings, source, [len(text.ids) for text in texts], length)
        kept = sorted(set(range(len(owner))) - set(held))
        held_out = every.chosen(held)
    if (any(source.train_texts) and not kept) or not held_out.ids:
        raise UserError(f"{source.train_path}: the text is too short for one window; give more text")
    chosen = shuffled(len(kept), settings.seed, "training rows")[: settings.train_rows or len(kept)]
    kept = [kept[place] for place in sorted(chosen)]
    held_out = held_out.chosen(range(len(held_out.ids))[: settings.final_rows])
    return every.chosen(kept), held_out, [owner[window] for window in kept]


def _joined(texts: list[Encoded]) -> Encoded:
    rows = [row for text in texts for row in text.ids]
    return Encoded(rows, [0] * len(rows), [0] * len(rows))


def _held(settings: Settings, source: Source, sizes: list[int], length: int) -> list[int]:
    """The last windows of each text, so that none overlaps or adjoins what is trained on more than once."""
    count = sum(sizes)
    wanted = settings.holdout or max(1, round(HOLDOUT * count))
    found: list[int] = []
    end = 0
    for size in sizes:
        own = wanted if len(sizes) == 1 else min(round(wanted * size / count), size - 1)
        end += size
        found += range(end - own, end)
    if not 0 < len(found) < count or wanted >= count:
        raise UserError(
            f"{source.train_path}: {count} windows of {length} tokens, {wanted} of them held out"
            + (f" among {len(sizes)} owners" if len(sizes) > 1 else "")
            + ", leave none to train on or to hold out; give more text, --validation FILE or a smaller --max-length"
        )
    return found
