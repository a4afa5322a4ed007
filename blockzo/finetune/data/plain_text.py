"""Text that stays text: `</s>` or `<|im_end|>` in somebody's data is spelled out instead of becoming the control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MARKUP = re.compile(r"<.+>|\[.+\]", re.S)
"""Added tokens that steer a model though the tokenizer does not call them special: <think>, <tool_call>, [INST]."""


class PlainText:
    """Token ids of text in which no control token arises.

    `split_special_tokens` of the tokenizers is the start, but not enough: it leaves added tokens that are not marked as special,
    and a unigram vocabulary finds `</s>` among its own pieces. What still arises is replaced by the ids of its characters.

    Attributes:
        control: id -> text of the control tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.control = {
            number: str(token)
            for number, token in added.items()
            if (token.special or MARKUP.fullmatch(str(token))) and str(token).strip()
        }
        for number, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False):
            self.control[number] = str(text)
        others = {name: text for name, text in tokenizer.special_tokens_map.items() if name != "unk_token"}
        self.unknown = tokenizer.unk_token
        if self.unknown is not None and self.unknown not in others.values():
            # it stands for characters that the vocabulary lacks, too
            self.control.pop(tokenizer.unk_token_id, None)
        else:
            self.unknown = None
        self._stripped = {n: (bool(t.lstrip), bool(t.rstrip)) for n, t in added.items()}
        texts = sorted({*self.control.values()}, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._numbers = {text: number for number, text in self.control.items()}
        self._vocabulary: dict[str, int] | None = None
        bare, whole = self._call("a", False, False), self._call("a", True, False)
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        self.start, self.end = whole[:start], whole[start + len(bare) :]

    def controls(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among ids, in order."""
        return [number for number in ids if number in self.control]

    def names_unknown(self, text: str) -> bool:
        """Whether the text has the unknown token's own text in it, which would become that token."""
        return self.unknown is not None and self.unknown in text

    def names_control(self, text: str) -> bool:
        """Whether a control token (or the unknown one) is spelled out in the text."""
        return self.names_unknown(text) or bool(self._found and self._found.search(text))

    def split(self, template: str) -> list[str | int]:
        """A template's literal text, with the control tokens that its author wrote as ids."""
        parts: list[str | int] = []
        at = 0
        for match in self._found.finditer(template) if self._found else ():
            parts += [template[at : match.start()], self._numbers[match.group()]]
            at = match.end()
        return [*parts, template[at:]]

    def row(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of text (str) and control tokens (int) in order, between what the tokenizer puts around every text."""
        return self.start + self.joined(parts) + self.end

    def joined(self, parts: Sequence[str | int]) -> list[int]:
        """The same without what stands around every text."""
        merged: list[str | int] = []
        for part in parts:
            if isinstance(part, str) and merged and isinstance(merged[-1], str):
                merged[-1] += part
            else:
                merged.append(part)
        ids: list[int] = []
        for place, part in enumerate(merged):
            if isinstance(part, int):
                ids.append(part)
                continue
            # a control token may take the white space beside it, as RoBERTa's mask does
            if place + 1 < len(merged) and self._stripped.get(merged[place + 1], (False, False))[0]:
                part = part.rstrip()
            if place and self._stripped.get(merged[place - 1], (False, False))[1]:
                part = part.lstrip()
            ids += self.ids(part)
        return ids

    def ids(self, text: str) -> list[int]:
        """Ids of the text alone."""
        if not text:
            return []
        if self.unknown is not None and self.unknown in text:
            ids: list[int] = []
            for place, part in enumerate(text.split(self.unknown)):
                ids += [*(self._spelled(self.unknown) if place else ()), *self.ids(part)]
            return ids
        found = self._call(text, False, True)
        if not self.controls(found):
            return found
        return [
            i for number in found for i in (self._spelled(self.control[number]) if number in self.control else [number])
        ]

    def _call(self, text: str, around: bool, split: bool) -> list[int]:
        if split:
            try:
                return list(
                    self.tokenizer(text, add_special_tokens=around, split_special_tokens=True, verbose=False)[
                        "input_ids"
                    ]
                )
            except (TypeError, ValueError):
                # a tokenizer without this option: what arises is spelled out all the same
                pass
        return list(self.tokenizer(text, add_special_tokens=around, verbose=False)["input_ids"])

    def _spelled(self, text: str) -> list[int]:
        """The fewest pieces of the vocabulary that make up `text` and are no control tokens; unknown where there are none."""
        if self._vocabulary is None:
            self._vocabulary = {
                piece: number for piece, number in self.tokenizer.get_vocab().items() if number not in self.control
            }
        pieces, size = self._vocabulary, len(text)
        best: list[list[int] | None] = [[], *[None] * size]
        for end in range(1, size + 1):
            for start in range(end):
                before, part = best[start], text[start:end]
                number = pieces.get(f"##{part}") if start else None
                number = pieces.get(part) if number is None else number
                if part == self.unknown or number is None or before is None:
                    continue
                one = best[end]
                if one is None or len(one) > len(before) + 1:
                    best[end] = [*before, number]
        if best[size] is not None:
            return best[size] or []
        if text != text.lower():
            return self._spelled(text.lower())
        unknown = self.tokenizer.unk_token_id
        parts = [self._call(character, False, True) for character in text]
        return [
            number
            for part in parts
            for number in (part if not self.controls(part) else [unknown] if unknown is not None else [])
            if number not in self.control
        ]
