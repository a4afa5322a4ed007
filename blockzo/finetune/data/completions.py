"""From rows with written answers to token ids, and which of these the loss counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockzo.finetune.data.completion_task import PROMPT, CompletionTask
from blockzo.finetune.data.plain_text import PlainText
from blockzo.finetune.data.prompts import Encoded
from blockzo.finetune.data.templates import pieces, render
from blockzo.finetune.data.written import WrittenExample
from blockzo.finetune.errors import UserError

Span = tuple[int, int]
MARK = "\ue000{}\ue001"
"""Stands for the content of a message while a chat template is filled in, where that content must stay plain text."""
MARKED = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Completions(Encoded):
    """Rows with answers; `positions` is where the last answer begins.

    Attributes:
        spans: of every row, the ranges of tokens whose losses count.
        answers: of every row, right texts of the last answer.
    """

    spans: list[list[Span]] = field(default_factory=list)
    answers: list[tuple[str, ...]] = field(default_factory=list)

    def facts(self, row: int) -> tuple[Any, ...]:
        return (*super().facts(row), self.spans[row], self.answers[row])

    def prompt(self, row: int) -> list[int]:
        """What stands before the last answer."""
        return self.ids[row][: self.positions[row]]

    def predicted(self, row: int) -> list[int]:
        """Places of the tokens that the loss counts; none can be the first, which nothing predicts."""
        return [place for start, end in self.spans[row] for place in range(max(1, start), end)]


class CompletionEncoder:
    """Turns examples with written answers into token ids for one causal model; arguments as of `prompts.Encoder`."""

    def __init__(
        self,
        tokenizer: Any,
        task: CompletionTask,
        limit: int,
        overflow: str = "truncate",
        begin: int | None = None,
        control_tokens: bool = False,
    ) -> None:
        self.tokenizer, self.task, self.limit, self.overflow, self.begin = tokenizer, task, limit, overflow, begin
        self.control_tokens, self.plain = control_tokens, PlainText(tokenizer)
        template = task.template if task.template is not None else f"{{{PROMPT}}}"
        # a space between prompt and answer belongs to the answer's first token in every tokenizer in use
        self.template = template.rstrip(" ") if task.template is not None else template
        self.space = "" if task.template is None or self.template.endswith("\n") else " "
        names = task.columns or (PROMPT,)
        self._frame = self.plain.controls(
            self.tokenizer(render(self.template, dict.fromkeys(names, "a")), verbose=False)["input_ids"]
        )

    def encode(self, examples: Sequence[WrittenExample]) -> Completions:
        """
        Raises:
            UserError: a row is too long, its answer is not left by shortening, or the tokenizer has no chat template.
        """
        ids, positions, spans, truncated = [], [], [], 0
        for example in examples:
            row, counted = self._row(example)
            if len(row) > self.limit:
                if self.overflow == "error":
                    raise UserError(
                        f"{example.place}: {len(row)} tokens with the answer, the limit is {self.limit}; shorten the text, raise "
                        "--max-length, or allow --overflow truncate"
                    )
                row, counted = self._shortened(example, row, counted)
                truncated += 1
            ids.append(row)
            spans.append(counted)
            positions.append(counted[-1][0])
        return Completions(
            ids, positions, [0] * len(ids), truncated, spans=spans, answers=[example.answers for example in examples]
        )

    def _row(self, example: WrittenExample) -> tuple[list[int], list[Span]]:
        return self._chat(example) if example.messages else self._pair(example.columns, example)

    def _pair(self, columns: Mapping[str, str], example: WrittenExample) -> tuple[list[int], list[Span]]:
        before = list(self.tokenizer(render(self.template, columns), verbose=False)["input_ids"])
        if not self.control_tokens and (
            self.plain.controls(before) != self._frame or any(map(self.plain.names_unknown, columns.values()))
        ):
            parts: list[str | int] = []
            for text, name in pieces(self.template):
                parts += [*self.plain.split(text), "" if name is None else columns[name]]
            before = self.plain.row(parts)
        end = self.tokenizer.eos_token_id
        if before and before[-1] == end and self.plain.end == [end]:
            before = before[:-1]
        before = before if self.begin is None else [self.begin, *before]
        if not before:
            raise UserError(f"{example.place}: the prompt has no tokens; expected some text before the answer")
        text = self.space + example.answers[0].strip() if self.task.template is not None else example.answers[0]
        after = self._ids(text + (self.task.stop or ""))
        if self.task.stop is None and end is not None:
            after = [*after, end]
        return before + after, [(len(before), len(before) + len(after))]

    def _ids(self, text: str) -> list[int]:
        if not self.control_tokens:
            return self.plain.ids(text)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _chat(self, example: WrittenExample) -> tuple[list[int], list[Span]]:
        """The conversation as the tokenizer's chat template writes it, in parts that begin and end where an answer does: so it is
        cut where it is cut when the model answers."""
        said = [dict(one) for one in example.messages]
        kept: dict[int, str] = {}
        if not self.control_tokens and any(self.plain.names_control(one["content"]) for one in said):
            # what the template strips is stripped; of its conditions on contents the marks see none
            kept = {number: one["content"].strip() for number, one in enumerate(said)}
            said = [{**one, "content": MARK.format(number)} for number, one in enumerate(said)]
        whole = self._rendered(said, False, example)
        cuts: list[int] = []
        for number in example.counted:
            before = self._rendered(said[:number], True, example)
            after = self._rendered(said[: number + 1], False, example)
            if not (whole.startswith(before) and whole.startswith(after) and len(before) < len(after)):
                if number != example.counted[-1]:
                    continue  # the template writes earlier turns in another way than the last
                after = whole
                if not whole.startswith(before):
                    raise UserError(
                        f"{example.place}: the tokenizer's chat template does not write the conversation before an answer as it "
                        "does with it; write prompt and completion as texts"
                    )
            cuts += [len(before), len(after)]
        ids: list[int] = []
        spans: list[Span] = []
        for place, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(whole)], strict=True)):
            part = self._written(whole[start:end], kept)
            if place % 2:
                spans.append((len(ids), len(ids) + len(part)))
            ids += part
        return ids, spans

    def _rendered(self, said: list[dict[str, str]], prompt: bool, example: WrittenExample) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise UserError(
                f"{example.place}: a conversation, and the tokenizer has no chat template; use a model with one, or write "
                "columns prompt and completion"
            )
        try:
            return str(self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt))
        except Exception as error:
            raise UserError(
                f"{example.place}: the tokenizer's chat template refuses the conversation ({error}); look at its roles and their "
                "order"
            ) from error

    def _written(self, text: str, kept: Mapping[int, str]) -> list[int]:
        """Ids of a part of the template's text, in which control tokens are what they name."""
        if not kept:
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        parts: list[str | int] = []
        for place, piece in enumerate(MARKED.split(text)):
            parts += [kept[int(piece)]] if place % 2 else self.plain.split(piece)
        return self.plain.joined(parts)

    def _shortened(self, example: WrittenExample, row: list[int], counted: list[Span]) -> tuple[list[int], list[Span]]:
        """A prompt with the longest column cut at its end, or a conversation without its last tokens."""
        if example.messages:
            spans = [(start, min(end, self.limit)) for start, end in counted if start < self.limit]
            if not spans:
                raise UserError(
                    f"{example.place}: {counted[0][0]} tokens come before the first answer, the limit is {self.limit}; shorten "
                    "the conversation, or raise --max-length"
                )
            return row[: self.limit], spans
        columns = dict(example.columns)
        name = max(columns, key=lambda key: len(columns[key]))
        text = columns[name]
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._pair({**columns, name: text[:middle]}, example)[0]) <= self.limit:
                low = middle
            else:
                high = middle - 1
        found, spans = self._pair({**columns, name: text[:low].rstrip() or text[:1]}, example)
        if len(found) > self.limit:
            raise UserError(
                f"{example.place}: more than {self.limit} tokens even without most of {name!r}; raise --max-length, "
                "shorten the answer, or leave the row out"
            )
        return found, spans
