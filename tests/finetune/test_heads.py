"""Trained classifiers, models that are not what their kind promises, and code that comes with a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from blockzo import digest
from blockzo.finetune import Settings, finetune, replay
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.loading import load, save

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def made(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[Any, Any], Path]:
    """made(model class, configuration) -> its folder, with the tokenizer of the tiny models."""

    def make(kind: Any, config: Any) -> Path:
        torch.manual_seed(3)
        folder = tmp_path / kind.__name__
        tokenizer = hf.AutoTokenizer.from_pretrained(tiny("bert"))
        config.vocab_size = len(tokenizer)
        kind(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_a_trained_classifier_is_used(made: Any, rows: Callable[..., Path], tmp_path: Path) -> None:
    config = hf.BertConfig(**SMALL, max_position_embeddings=64, id2label={0: "Great", 1: "Terrible"})
    folder = made(hf.BertForSequenceClassification, config)
    ids, mask = torch.tensor([[2, 7, 8, 3]]), torch.ones(1, 4, dtype=torch.int64)
    own = hf.BertForSequenceClassification.from_pretrained(folder).eval()(ids, mask).logits
    plain = load(str(folder), "float32", classes=2, labels=("0", "1"))
    assert torch.equal(plain.model(ids, mask), own) and "Great = 0, Terrible = 1" in plain.notes[0]
    named = load(str(folder), "float32", classes=2, labels=("terrible", "great"))
    assert torch.equal(named.model(ids, mask), own[:, [1, 0]]) and "by their names" in named.notes[0]
    save(named, tmp_path / "saved")
    assert digest(load(str(tmp_path / "saved"), "float32", classes=2).model) == digest(named.model)
    assert "classifier.weight" in load(str(folder), "float32", "mean", classes=2).notes[0]
    with pytest.raises(UserError, match="a trained head of 2 outputs, the task has 3 classes.*--head mean"):
        load(str(folder), "float32", classes=3)
    settings = Settings(model=str(folder), train=str(rows()), steps=2, batch=4, lr="1e-3", eval_rows=4, final_rows=8)
    result = finetune(settings, tmp_path / "run")
    assert any("trained classifier" in note for note in result["warnings"])
    assert replay(str(folder), tmp_path / "run" / "journal.bz", tmp_path / "again")["verified"]


def test_classifiers_of_decoders_find_their_last_token(made: Any) -> None:
    folder = made(hf.LlamaForSequenceClassification, hf.LlamaConfig(**SMALL, pad_token_id=None))
    model = load(str(folder), "float32", classes=2).model
    short = model(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64))
    padded = model(torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(short, padded)


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        (
            hf.XLNetLMHeadModel,
            hf.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=48),
            "is not causal.*--head mean",
        ),
        (hf.BertLMHeadModel, hf.BertConfig(**SMALL), "is not causal"),
        (
            hf.T5ForConditionalGeneration,
            hf.T5Config(d_model=16, num_layers=2, num_heads=2, d_ff=8, d_kv=8),
            "encoder-decoder",
        ),
        (
            hf.BartForConditionalGeneration,
            hf.BartConfig(d_model=16, encoder_layers=1, decoder_layers=1),
            "encoder-decoder",
        ),
        (hf.ViTModel, hf.ViTConfig(**SMALL), "does not run on token ids alone"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_models_that_are_refused_by_name(made: Any, kind: Any, config: Any, told: str) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}.*{told}"):
        load(str(made(kind, config)), "float32", classes=2)


def test_xlnet_as_an_encoder_has_no_limit(made: Any) -> None:
    folder = made(hf.XLNetLMHeadModel, hf.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=48))
    loaded = load(str(folder), "float32", "mean", classes=2)
    assert loaded.limit >= 1 << 20 and "lm_loss.bias" in loaded.notes[0]


CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_by_option_alone(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("nobody is asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    save(load(str(tiny("llama")), "float32"), folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    config.update(model_type="own", auto_map=own, architectures=["OwnForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)
    with pytest.raises(UserError, match="Python code of its own.*--trust-remote-code"):
        load(str(folder), "float32")
    assert not list(tmp_path.rglob("ran"))
    assert digest(load(str(folder), "float32", trust_remote_code=True).model) == digest(
        load(str(tiny("llama")), "float32").model
    )
    assert list(tmp_path.rglob("ran"))
