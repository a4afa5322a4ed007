"""Folders that are nearly right: sizes that the weights do not have, shards elsewhere, old buffers, zeros in place of numbers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockzo import digest
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.loading import load

Tiny = Callable[[str], Path]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama"), tmp_path / "m")


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "value"), [("num_hidden_layers", 10**8), ("vocab_size", 10**12), ("hidden_size", 10**6)]
)
def test_a_configuration_larger_than_its_weights_is_refused_before_it_is_built(
    folder: Path, name: str, value: int
) -> None:
    rewrite(folder / "config.json", **{name: value})
    with pytest.raises(UserError, match=f"its config.json says {name} {value}, and the file has"):
        load(str(folder), "float32")


@pytest.mark.parametrize("value", [-5, 0, "many", True])
def test_limits_that_are_none_are_refused(folder: Path, value: Any) -> None:
    rewrite(folder / "tokenizer_config.json", model_max_length=value)
    with pytest.raises(UserError, match=f"model_max_length of the tokenizer is {value!r}; expected a positive number"):
        load(str(folder), "float32")


def test_other_values_of_no_sense(folder: Path) -> None:
    rewrite(folder / "config.json", max_position_embeddings=0)
    with pytest.raises(UserError, match="max_position_embeddings of config.json is 0"):
        load(str(folder), "float32")
    rewrite(folder / "config.json", architectures=[3], max_position_embeddings=64)
    with pytest.raises(UserError, match="architectures in its config.json begins with 3"):
        load(str(folder), "float32")


def test_where_shards_are(tiny: Tiny, tmp_path: Path) -> None:
    whole = load(str(tiny("llama")), "float32")
    folder = tmp_path / "m"
    whole.model.save_pretrained(folder, max_shard_size="40KB")
    whole.tokenizer.save_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    first = sorted(folder.glob("model-*.safetensors"))[0]
    places = json.loads(index.read_text())["weight_map"]

    def moved(to: str) -> None:
        rewrite(index, weight_map={key: to if name == first.name else name for key, name in places.items()})

    (folder / "part").mkdir()
    for to in (f"../{first.name}", str(tmp_path / first.name), f"part/../../{first.name}"):
        shutil.copy(first, tmp_path / first.name)
        moved(to)
        with pytest.raises(UserError, match="which is not inside of"):
            load(str(folder), "float32")
    os.replace(first, folder / "part" / first.name)
    moved(f"part/{first.name}")
    assert digest(load(str(folder), "float32").model) == digest(whole.model)
    rewrite(index, weight_map={})
    with pytest.raises(UserError, match="its weight_map is empty"):
        load(str(folder), "float32")


def test_what_old_files_of_gpt2_hold_beside_weights(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("gpt2"), tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    for layer in range(4):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril().bool()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    state = {name: tensor.clone() for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert digest(load(str(folder), "float32").model) == digest(load(str(tiny("gpt2")), "float32").model)
    state["transformer.h.0.attn.masked_bias"] = torch.zeros(32)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="does not have: transformer.h.0.attn.masked_bias"):
        load(str(folder), "float32")


def test_zeros_in_place_of_a_weight_are_said(folder: Path) -> None:
    assert load(str(folder), "float32").notes == []
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    state["model.layers.3.mlp.up_proj.weight"].zero_()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (note,) = load(str(folder), "float32").notes
    assert "all numbers of model.layers.3.mlp.up_proj.weight are 0" in note


def test_pickles_of_something_else(folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights alone. It is cut, or a pickle") as caught:
        load(str(folder), "float32")
    assert "weights_only" not in str(caught.value), "nobody is told how to run a pickle"
    torch.save(dict(enumerate(state.values())), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="has the name 0 for a weight"):
        load(str(folder), "float32")


def test_a_quantisation_that_transformers_does_not_know_makes_no_floats_of_bytes(folder: Path) -> None:
    rewrite(folder / "config.json", quantization_config={"quant_method": "zip"})
    assert load(str(folder), "float32").notes == []
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    name = "model.layers.3.mlp.up_proj.weight"
    state[name] = (100 * state[name]).to(torch.int8)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"1 that hold whole or packed numbers \(I8\): {name}"):
        load(str(folder), "float32")


@pytest.mark.parametrize(
    "told",
    [
        {"rope_type": "default", "rope_theta": -5.0},
        {"rope_type": "default", "rope_theta": 0.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0},
    ],
)
def test_rotary_tables_of_no_numbers_are_refused(folder: Path, told: Any) -> None:
    """Attention makes zeros of them, so that the logits are finite."""
    rewrite(folder / "config.json", rope_parameters=told)
    with pytest.raises(UserError, match="inv_freq, which the model computes of its config.json, is not finite"):
        load(str(folder), "float32")


@pytest.mark.parametrize("value", [-1.0, 2.0, float("inf")])
def test_norms_that_make_nothing_of_everything_are_refused(folder: Path, value: float) -> None:
    rewrite(folder / "config.json", rms_norm_eps=value)
    with pytest.raises(UserError, match="config.json says rms_norm_eps .*; expected a small number"):
        load(str(folder), "float32")


def test_other_numbers_whose_names_end_alike_are_none_of_ours(folder: Path) -> None:
    rewrite(folder / "config.json", warmup_steps=2000, num_steps=4)
    assert load(str(folder), "float32").notes == []


def test_indices_and_pickles_that_transformers_would_stumble_over(tiny: Tiny, tmp_path: Path) -> None:
    whole = load(str(tiny("llama")), "float32")
    whole.model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    whole.tokenizer.save_pretrained(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    shutil.copy(tiny("llama") / "model.safetensors", tmp_path / "m")
    (note,) = load(str(tmp_path / "m"), "float32").notes
    assert "holds model.safetensors and model.safetensors.index.json; the first is read" in note
    (tmp_path / "m" / "model.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    with pytest.raises(UserError, match='has no "metadata", which transformers reads; add "metadata": {} to it'):
        load(str(tmp_path / "m"), "float32")
    index.unlink()
    state = whole.model.state_dict()
    state["model.norm.weight"] = state["model.norm.weight"].to_sparse()
    torch.save(dict(state), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UserError, match="'model.norm.weight' as a torch.sparse_coo tensor; expected dense ones"):
        load(str(tmp_path / "m"), "float32")


def test_parts_of_another_kind_of_configuration_are_told_in_words(folder: Path) -> None:
    rewrite(folder / "config.json", text_config={"hidden_size": 99})
    with pytest.raises(UserError, match="cannot be loaded .a folder."):
        load(str(folder), "float32")


def test_a_class_of_another_type_is_said(folder: Path) -> None:
    rewrite(folder / "config.json", architectures=["MistralForCausalLM"])
    (note,) = load(str(folder), "float32").notes
    assert (
        "has the model_type 'llama' and names MistralForCausalLM, a class of 'mistral': it is read as 'llama'" in note
    )


def test_a_tokenizer_of_a_much_smaller_model_is_said(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    small.train_from_iterator(["it was a good film"], trainers.BpeTrainer(vocab_size=40, special_tokens=["</s>"]))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=small, eos_token="</s>").save_pretrained(folder)
    (note,) = load(str(folder), "float32").notes
    assert f"has {len(small.get_vocab())} tokens and the embedding" in note and "another model's" in note
