"""From rows to token ids: prompts, label words as single tokens, truncation that never cuts the question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from blockzo.finetune.data.plain_text import PlainText
from blockzo.finetune.data.read import Example
from blockzo.finetune.data.task import PromptTask
from blockzo.finetune.data.templates import pieces, render
from blockzo.finetune.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Encoded:
    """Token ids of rows; `positions` is where the label word is predicted, `labels` the class of each row."""

    ids: list[list[int]]
    positions: list[int]
    labels: list[int]
    truncated: int = 0

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    def digest(self) -> str:
        """SHA-256 over ids, positions and labels: equal exactly where training would see the same data."""
        found = hashlib.sha256()
        for row in range(len(self.ids)):
            found.update(repr(self.facts(row)).encode())
        return found.hexdigest()

    def facts(self, row: int) -> tuple[Any, ...]:
        """All that training sees of a row."""
        return self.ids[row], self.positions[row], self.labels[row]

    def chosen(self, rows: Sequence[int]) -> Self:
        """These rows alone."""
        lists: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "truncated"}
        part: dict[str, Any] = {name: [held[row] for row in rows] for name, held in lists.items()}
        return replace(self, **part)


class Encoder:
    """Turns examples into token ids for one model.

    Args:
        tokenizer: a Hugging Face tokenizer.
        kind: "causal" (label word after the last token), "masked" (at the mask) or "head" (mean-pooled encoder).
        limit: most tokens a row may have.
        overflow: "truncate" shortens the longest column of a row that has more; "error" refuses it.
        begin: token id put before every row, or None.
        control_tokens: let control tokens that are spelled out in the data (`</s>`) become what they name.
    """

    def __init__(
        self,
        tokenizer: Any,
        task: PromptTask,
        kind: str,
        limit: int,
        overflow: str = "truncate",
        begin: int | None = None,
        control_tokens: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.kind = kind
        self.limit = limit
        self.overflow = overflow
        self.begin = begin
        if kind == "masked" and tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} has no mask token; masked models need one (or --head)"
            )
        self.control_tokens, self.plain = control_tokens, PlainText(tokenizer)
        before, after = task.parts(kind == "masked")
        # a space before the label word belongs to the word in every tokenizer in use
        self.space = " " if before.endswith(" ") else ""
        self.before, self.after = before.removesuffix(" "), after
        # the control tokens of a row whose columns have none
        self._frame = self.plain.controls(
            self.tokenizer(self._text(dict.fromkeys(task.columns, "a")), verbose=False)["input_ids"]
        )
        read = {name for _, name in pieces(before)}
        unread = set(task.columns) - read if kind == "causal" else set()
        if unread and task.masked_template is None:
            raise UserError(
                f"the template {task.template!r} has {', '.join(sorted(unread))} after the label word, which a causal model "
                "never reads; put {label} at the end of --template"
            )

    def encode(self, examples: Sequence[Example]) -> Encoded:
        ids, positions, labels, truncated = [], [], [], 0
        for example in examples:
            row = self._row(example.columns)
            if len(row) > self.limit:
                if self.overflow == "error":
                    raise UserError(
                        f"{example.place}: {len(row)} tokens with the prompt, the limit is {self.limit}; shorten the text, "
                        "raise --max-length, or allow --overflow truncate"
                    )
                row = self._shortened(example)
                truncated += 1
            ids.append(row)
            positions.append(self._position(row, example))
            labels.append(example.label)
        return Encoded(ids, positions, labels, truncated)

    def _row(self, columns: Mapping[str, str]) -> list[int]:
        ids: list[int] = list(self.tokenizer(self._text(columns), verbose=False)["input_ids"])
        if not self.control_tokens and (
            self.plain.controls(ids) != self._frame or any(map(self.plain.names_unknown, columns.values()))
        ):
            ids = self.plain.row(self._parts(columns))
        if self.kind == "causal":
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
            ids = ids if self.begin is None else [self.begin, *ids]
        return ids

    def _text(self, columns: Mapping[str, str]) -> str:
        if self.kind == "head":
            return f" {self.tokenizer.sep_token or ''} ".join(columns[name] for name in self.task.columns)
        if self.kind == "causal":
            return render(self.before, columns)
        mask = self.tokenizer.mask_token
        # a second mask would be one place too many
        clean = {name: text.replace(mask, " ") for name, text in columns.items()} if self.control_tokens else columns
        return render(self.before, clean) + self.space + mask + render(self.after, clean)

    def _parts(self, columns: Mapping[str, str]) -> list[str | int]:
        """The row as text and as control tokens, of the template and the tokenizer alone."""
        if self.kind == "head":
            sep: list[str | int] = [
                " ",
                *([] if self.tokenizer.sep_token is None else [self.tokenizer.sep_token_id]),
                " ",
            ]
            texts = [columns[name] for name in self.task.columns]
            return [part for place, text in enumerate(texts) for part in (*(sep if place else ()), text)]
        before = self._filled(self.before, columns)
        if self.kind == "causal":
            return before
        return [*before, self.space, self.tokenizer.mask_token_id, *self._filled(self.after, columns)]

    def _filled(self, template: str, columns: Mapping[str, str]) -> list[str | int]:
        parts: list[str | int] = []
        for text, name in pieces(template):
            parts += [*self.plain.split(text), "" if name is None else columns[name]]
        return parts

    def _shortened(self, example: Example) -> list[int]:
        """The row with the longest column cut (as little as needed) at its end, never the words of the template."""
        columns = dict(example.columns)
        while True:
            name = max(columns, key=lambda key: len(columns[key]))
            text = columns[name]
            if not text:
                raise UserError(
                    f"{example.place}: the template alone has more than {self.limit} tokens; raise --max-length or shorten it"
                )
            low, high = 0, len(text)
            while low < high:
                middle = (low + high + 1) // 2
                if len(self._row({**columns, name: text[:middle]})) <= self.limit:
                    low = middle
                else:
                    high = middle - 1
            columns[name] = text[:low].rstrip()
            row = self._row(columns)
            if len(row) <= self.limit:
                return row
            columns[name] = ""

    def _position(self, row: list[int], example: Example) -> int:
        if self.kind == "head":
            return 0
        if self.kind == "causal":
            if not row:
                raise UserError(f"{example.place}: the prompt has no tokens; expected some text before the label word")
            return len(row) - 1
        found = [i for i, token in enumerate(row) if token == self.tokenizer.mask_token_id]
        if len(found) != 1:
            raise UserError(f"{example.place}: {len(found)} mask tokens in the prompt; expected one (see --template)")
        return found[0]

    def label_ids(self) -> tuple[list[int], list[str]]:
        """The first token of every label word as it stands in the prompt, and notes on words of several tokens.

        Raises:
            UserError: two label words begin with the same token, or a word merges with the text before it.
        """
        tail = pieces(self.before)[-1][0]
        anchor = tail if tail.strip() or not self.before else "It was"
        start = self._plain(anchor)
        found: dict[int, str] = {}
        ids, notes = [], []
        for label, word in self.task.words.items():
            whole = self._plain(anchor + self.space + word)
            own = whole[len(start) :]
            if whole[: len(start)] != start or not own:
                raise UserError(
                    f"label word {word!r} (label {label}) merges with the text before it in this tokenizer; "
                    "put a space before {label} in --template, or choose another word with --labels"
                )
            token = own[0]
            if token in found:
                raise UserError(
                    f"the label words {found[token]!r} and {word!r} begin with the same token "
                    f"{self.tokenizer.convert_ids_to_tokens([token])[0]!r} in this tokenizer, so their scores cannot differ; "
                    "choose other words with --labels"
                )
            if token == self.tokenizer.unk_token_id:
                raise UserError(f"label word {word!r} is unknown to this tokenizer; choose another word with --labels")
            if len(own) > 1:
                notes.append(f"label word {word!r} has {len(own)} tokens; only the first is scored")
            found[token] = word
            ids.append(token)
        return ids, notes

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def begin_token(tokenizer: Any, kind: str) -> int | None:
    """The BOS id that has to be put before a prompt: Llama's tokenizers were trained with one, some do not add it."""
    if kind != "causal" or tokenizer.bos_token_id is None or tokenizer.bos_token != "<s>":
        return None
    ids = tokenizer("a")["input_ids"]
    return None if ids and ids[0] == tokenizer.bos_token_id else int(tokenizer.bos_token_id)


def windows(
    lines: Sequence[str], tokenizer: Any, length: int, begin: int | None, control_tokens: bool = False
) -> Encoded:
    """Plain text as consecutive windows of `length` tokens (a shorter one at the end if it has at least two)."""
    ids: list[int] = []
    plain = PlainText(tokenizer)
    for line in lines:
        found = list(tokenizer(line + "\n", add_special_tokens=False, verbose=False)["input_ids"])
        if not control_tokens and (plain.controls(found) or plain.names_unknown(line)):
            found = plain.ids(line + "\n")
        ids += found
    own = length - (begin is not None)
    if own < 2:
        raise UserError(f"--max-length {length} leaves no token to predict; expected 3 or more")
    start = [] if begin is None else [begin]
    rows = [start + ids[i : i + own] for i in range(0, len(ids), own)]
    rows = [row for row in rows if len(row) >= 2]
    return Encoded(rows, [0] * len(rows), [0] * len(rows))
