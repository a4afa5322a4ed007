"""Prompts as token ids: positions, label words, truncation, windows of text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from blockzo.finetune.data.prompts import Encoder, begin_token, windows
from blockzo.finetune.data.read import Example
from blockzo.finetune.data.tasks import TASKS, PromptTask, find_task
from blockzo.finetune.errors import UserError

WORDS = {"0": "terrible", "1": "great"}


def example(**columns: str) -> Example:
    return Example(columns, 1, "rows.tsv, line 2")


@pytest.fixture(scope="module")
def llama(stories: Path) -> Any:
    return AutoTokenizer.from_pretrained(stories)


def test_causal_prompts_end_before_the_label_word(llama: Any) -> None:
    begin = begin_token(llama, "causal")
    assert begin == 1
    encoder = Encoder(llama, TASKS["sst2"], "causal", 256, begin=begin)
    data = encoder.encode([example(text="a fine film .")])
    assert data.ids == [[1, *llama("a fine film . It was")["input_ids"]]]
    assert data.positions == [len(data.ids[0]) - 1]
    ids, notes = encoder.label_ids()
    assert llama.convert_ids_to_tokens(ids) == ["▁terrible", "▁great"] and notes == []


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_ready_made_task_has_distinct_label_words(name: str, llama: Any, tiny: Callable[[str], Path]) -> None:
    ids, _ = Encoder(llama, TASKS[name], "causal", 256).label_ids()
    assert len(set(ids)) == len(TASKS[name].words)


def test_masked_prompts_hold_one_mask(tiny: Callable[[str], Path]) -> None:
    for name in ("bert", "roberta"):
        tokenizer = AutoTokenizer.from_pretrained(tiny(name))
        task = PromptTask("custom", "{text} It was {label}.", WORDS)
        encoder = Encoder(tokenizer, task, "masked", 64)
        mask = tokenizer.mask_token
        data = encoder.encode([example(text="the film"), example(text=f"a {mask} in the text")])
        for ids, position in zip(data.ids, data.positions, strict=True):
            assert ids[position] == tokenizer.mask_token_id and ids.count(tokenizer.mask_token_id) == 1
            assert ids[0] == (tokenizer.cls_token_id if name == "bert" else 0)
        ids, _ = encoder.label_ids()
        whole = tokenizer("it was great", add_special_tokens=False)["input_ids"]
        assert whole[-1] == ids[1]


def test_opts_begin_is_left_to_its_tokenizer(tiny: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("opt"))
    assert begin_token(tokenizer, "causal") is None
    data = Encoder(tokenizer, TASKS["sst2"], "causal", 64).encode([example(text="good")])
    assert data.ids[0][0] == tokenizer.bos_token_id and data.ids[0][-1] != tokenizer.eos_token_id


def test_label_words_that_begin_alike(llama: Any) -> None:
    task = find_task("sst2", None, "0=unbelievable bad,1=unbelievable good")
    with pytest.raises(UserError, match="begin with the same token.*--labels"):
        Encoder(llama, task, "causal", 256).label_ids()


def test_label_words_of_several_tokens_are_noted(llama: Any) -> None:
    ids, notes = Encoder(llama, find_task("sst2", None, "0=terrible,1=magnificently"), "causal", 256).label_ids()
    assert len(ids) == 2 and "'magnificently'" in notes[0] and "only the first is scored" in notes[0]


def test_a_label_word_may_follow_a_line_end_directly(tiny: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    task = PromptTask("custom", "{text}\nanswer\n{label}", {"0": "no", "1": "yes"})
    ids, _ = Encoder(tokenizer, task, "causal", 64).label_ids()
    assert tokenizer.convert_ids_to_tokens(ids) == [tokenizer.tokenize("\nno")[1], tokenizer.tokenize("\nyes")[1]]


def test_long_text_is_cut_as_little_as_needed_and_never_the_question(llama: Any) -> None:
    encoder = Encoder(llama, TASKS["rte"], "causal", 60, begin=1)
    premise = "A long premise goes on and on , with many words and no end . " * 8
    data = encoder.encode([example(premise=premise, hypothesis="It has no end .")])
    text = llama.decode(data.ids[0])
    assert 55 <= len(data.ids[0]) <= 60 and data.truncated == 1
    assert text.startswith("<s> A long premise goes on")
    assert text.endswith('Does this mean that "It has no end ." is true? Yes or No?\n')
    with pytest.raises(UserError, match="rows.tsv, line 2: .* tokens with the prompt, the limit is 60"):
        Encoder(llama, TASKS["rte"], "causal", 60, overflow="error").encode(
            [example(premise=premise, hypothesis="It has no end .")]
        )
    with pytest.raises(UserError, match="the template alone has more than 10 tokens"):
        Encoder(llama, TASKS["rte"], "causal", 10).encode([example(premise=premise, hypothesis=premise)])


def test_masked_text_is_cut_but_its_mask_stays(tiny: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("bert"))
    data = Encoder(tokenizer, TASKS["sst2"], "masked", 24).encode([example(text="the film of the story " * 20)])
    assert len(data.ids[0]) <= 24 and data.ids[0][data.positions[0]] == tokenizer.mask_token_id


def test_columns_that_a_causal_model_would_never_read(llama: Any) -> None:
    task = PromptTask("custom", "{premise}? {label}, {hypothesis}", WORDS)
    with pytest.raises(UserError, match="has hypothesis after the label word"):
        Encoder(llama, task, "causal", 256)
    with pytest.raises(UserError, match="has text after the label word"):
        Encoder(llama, PromptTask("custom", "{label} {text}", WORDS), "causal", 256)


def test_digests_see_texts_labels_and_templates(llama: Any) -> None:
    def digest(text: str, label: int, template: str | None = None) -> str:
        encoder = Encoder(llama, find_task("sst2", template), "causal", 256)
        return encoder.encode([Example({"text": text}, label, "here")]).digest()

    assert digest("one", 1) == digest("one", 1)
    assert len({digest("one", 1), digest("two", 1), digest("one", 0), digest("one", 1, "{text} {label}")}) == 4


def test_windows_hold_the_text_in_order(llama: Any) -> None:
    lines = ["Once upon a time there was a cat .", "It was a good cat ."]
    whole = [token for line in lines for token in llama(line + "\n", add_special_tokens=False)["input_ids"]]
    data = windows(lines, llama, 6, begin=1)
    assert [token for row in data.ids for token in row[1:]] == whole[: sum(len(r) - 1 for r in data.ids)]
    assert all(row[0] == 1 and len(row) <= 6 for row in data.ids)
    with pytest.raises(UserError, match="--max-length 2"):
        windows(lines, llama, 2, begin=1)
