"""Control tokens that are spelled out in data stay text, for every kind of tokenizer; templates keep theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from blockzo.finetune.data.plain_text import PlainText
from blockzo.finetune.data.prompts import Encoder, windows
from blockzo.finetune.data.read import Example
from blockzo.finetune.data.tasks import PromptTask

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories15M"
TEXT = ["it was a good film and a great story . It was terrible", "abcdefghijklmnopqrstuvwxyz 0123456789 <>[]/|_-"] * 4
MADE = ("smollm", "bert", "unigram", "words", "slow")
# a plain clone has no shared folder
KINDS = ("stories", *MADE) if STORIES.is_dir() else MADE


@lru_cache
def tokenizer(kind: str) -> Any:
    if kind == "stories":
        return transformers.AutoTokenizer.from_pretrained(STORIES)
    if kind == "slow":
        return Slow(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    special = ["<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[SEP]", "<|im_start|>", "<|im_end|>"]
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    elif kind == "words":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=special)
    elif kind == "bert":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(TEXT, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>"))]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        sep_token="[SEP]",
        mask_token=AddedToken("[MASK]", lstrip=kind == "smollm"),
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    # as Qwen's: an added token that is not marked as special
    fast.add_tokens([AddedToken("<tool_call>", special=False)])
    return fast


class Slow(transformers.PreTrainedTokenizer):
    """A tokenizer in Python: characters."""

    def __init__(self, **options: Any) -> None:
        self.table = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", "<pad>", *sorted(set("".join(TEXT)))])}
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def get_vocab(self) -> dict[str, int]:
        return {**self.table, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.table.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.table)[index]


pieces = st.sampled_from(
    [
        "</s>",
        "<s>",
        "<unk>",
        "<pad>",
        "[MASK]",
        "[SEP]",
        "<|im_start|>",
        "<|im_end|>",
        "<tool_call>",
        " ",
        "a",
        "good film",
        "é",
        "\n",
    ]
)
texts = st.lists(pieces, min_size=1, max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), text=texts)
def test_no_control_token_arises_from_text(kind: str, text: str) -> None:
    found = tokenizer(kind)
    plain = PlainText(found)
    ids = plain.ids(text)
    assert not plain.controls(ids), found.convert_ids_to_tokens(ids)
    if kind in ("stories", "smollm"):
        # no character is lost; a prefix space may come before a part
        assert found.decode(ids, clean_up_tokenization_spaces=False).replace(" ", "") == text.replace(" ", "")
    data = windows([text], found, 4096, None)
    assert not [i for row in data.ids for i in row if i in plain.control]


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), way=st.sampled_from(("causal", "masked", "head")), one=texts, two=texts)
def test_rows_have_the_control_tokens_of_their_template_alone(kind: str, way: str, one: str, two: str) -> None:
    found = tokenizer(kind)
    if way == "masked" and found.mask_token is None:
        return
    task = PromptTask("custom", "<|im_start|>{one} and {two} It was {label}.", {"0": "terrible", "1": "great"})
    encoder = Encoder(found, task, way, 4096)
    (ordinary,) = encoder.encode([Example({"one": "good", "two": "film"}, 0, "here")]).ids
    data = encoder.encode([Example({"one": one, "two": two}, 0, "here")])
    assert encoder.plain.controls(data.ids[0]) == encoder.plain.controls(ordinary)
    if way == "masked":
        assert data.ids[0][data.positions[0]] == found.mask_token_id


@pytest.mark.parametrize(
    "kind",
    [pytest.param("stories", marks=pytest.mark.skipif(not STORIES.is_dir(), reason="stories15M is not there")), *MADE],
)
@pytest.mark.parametrize("way", ["causal", "masked", "head"])
def test_ordinary_rows_are_encoded_as_ever(kind: str, way: str) -> None:
    """The parts joined give what the tokenizer makes of the whole row, where no control token is in the data."""
    found = tokenizer(kind)
    if way == "masked" and found.mask_token is None:
        return
    task = PromptTask("custom", "{text} It was {label} .", {"0": "terrible", "1": "great"})
    encoder = Encoder(found, task, way, 4096)
    columns = {"text": "a good film"}
    assert encoder.plain.row(encoder._parts(columns)) == list(found(encoder._text(columns))["input_ids"])


def test_the_option_lets_them_through(tiny: Callable[[str], Path]) -> None:
    found = tokenizer("smollm")
    task = PromptTask("custom", "{text} It was {label}.", {"0": "terrible", "1": "great"})
    example = Example({"text": "the end </s> <s> again"}, 0, "here")
    text, control = (
        Encoder(found, task, "causal", 99, control_tokens=on).encode([example]).ids[0] for on in (False, True)
    )
    assert text.count(found.eos_token_id) == 0 and text.count(found.bos_token_id) == 1
    assert control.count(found.eos_token_id) == 1 and control.count(found.bos_token_id) == 2
    assert windows(["a </s>"], found, 99, None).ids != windows(["a </s>"], found, 99, None, True).ids
