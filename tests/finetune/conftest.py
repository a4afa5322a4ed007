"""Real stories15M, and tiny models of six architectures with random weights and small tokenizers, saved as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SHARED = Path(__file__).resolve().parents[3] / "shared"
STORIES = SHARED / "models" / "stories15M"
WORDS = "it was terrible great bad good the a film story of is and but not very . , yes no ? this that"


@pytest.fixture(scope="session")
def stories() -> Path:
    return _beside_the_repository(STORIES)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return _beside_the_repository(SHARED / "data")


def _beside_the_repository(path: Path) -> Path:
    """A plain clone has no shared folder and skips what needs it; CI has one, and there a skip is a failure."""
    if not path.is_dir():
        pytest.skip(f"{path.name} is not beside the repository")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny(name) -> folder of a small random model with a tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(7)
            tokenizer = _tokenizer(name)
            model = _model(name, tokenizer)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


def _tokenizer(name: str) -> Any:
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    text = [WORDS, WORDS.upper(), "abcdefghijklmnopqrstuvwxyz 0123456789"]
    if name in ("bert", "encoder"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer.train_from_iterator(text, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([f" {line}" for line in text * 4], trainer)
    if name in ("roberta", "mpnet"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    elif name == "opt":
        # as OPT's own tokenizer: </s> begins every text
        tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="</s>", eos_token="</s>"
    )
    if name in ("roberta", "mpnet"):
        from tokenizers import AddedToken

        fast.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    return fast


def _model(name: str, tokenizer: Any) -> Any:
    import transformers as t

    size = len(tokenizer)
    common = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "pad_token_id": 1,
    }
    wide = dict(common, intermediate_size=64)
    if name == "opt":
        return t.OPTForCausalLM(
            t.OPTConfig(
                **common, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=64, bos_token_id=2, eos_token_id=2
            )
        )
    if name == "llama":
        return t.LlamaForCausalLM(
            t.LlamaConfig(**wide, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)
        )
    if name == "qwen2":
        return t.Qwen2ForCausalLM(
            t.Qwen2Config(**wide, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
        )
    if name == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=64))
    if name == "roberta":
        return t.RobertaForMaskedLM(t.RobertaConfig(**wide, max_position_embeddings=66))
    if name == "mpnet":
        return t.MPNetForMaskedLM(t.MPNetConfig(**wide, max_position_embeddings=66))
    bert = t.BertConfig(**{**wide, "pad_token_id": 0}, max_position_embeddings=64)
    return t.BertModel(bert) if name == "encoder" else t.BertForMaskedLM(bert)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """rows(count, name) -> a TSV file of so many two-class rows whose label can be read off the text."""

    def write(count: int = 60, name: str = "rows.tsv") -> Path:
        words = (
            "the film is bad",
            "the story is good and very great",
            "this is not a good film , it was bad",
            "great story",
        )
        lines = [f"{words[i % 4]} {'of the ' * (i % 7)}{i} .\t{(0, 1, 0, 1)[i % 4]}" for i in range(count)]
        path = tmp_path / name
        path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
