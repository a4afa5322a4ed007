"""LoRA by `--peft`: first weights from the seed, rebuilt from base and journal, saved merged and for PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockzo import digest
from blockzo.finetune import Settings, evaluate, finetune, replay
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.adapter_folder import with_adapter
from blockzo.finetune.models.loading import load, save
from blockzo.finetune.models.lora import ADAPTER
from blockzo.finetune.models.lora_options import LoraOptions, parse_adapter

Tiny = Callable[[str], Path]
Rows = Callable[..., Path]


def test_what_an_adapter_is() -> None:
    assert parse_adapter("lora") == parse_adapter("lora:r=8,alpha=16") == LoraOptions(8, 16, ())
    assert parse_adapter("lora:targets=q_proj+v_proj, r=4").targets == ("q_proj", "v_proj")
    assert parse_adapter("dora:r=2") == LoraOptions(2, 16, (), "dora")


@pytest.mark.parametrize(
    "text",
    ["loha", "prefix:r=2", "", "lora:r", "lora:r=0", "lora:r=x", "lora:r=1,r=2", "lora:rank=4", "lora:targets=a+"],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--peft (is|has) .*expected"):
        Settings("m", peft=text)


def test_the_first_weights_are_a_function_of_the_seed(tiny: Tiny) -> None:
    def made(seed: int) -> str:
        torch.manual_seed(torch.seed())
        return digest(load(str(tiny("llama")), "float32", seed=seed, peft="lora:r=2").model)

    assert made(3) == made(3) != made(4)


def test_layers_that_are_not_there_are_named(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="--peft cannot be put on .*targets=q_proj"):
        load(str(tiny("llama")), "float32", peft="lora:targets=nothing")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_run_its_replay_and_what_others_load(kind: str, tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    import peft
    import transformers

    own: dict[str, Any] = {
        "task": "custom",
        "template": "{text} it was {label}.",
        "labels": "0=bad,1=good",
        "train": str(rows(20)),
        "validation": str(rows(8, "held.tsv")),
    }
    told = Settings(
        str(tiny("llama")), **own, peft=f"{kind}:r=2,targets=q_proj+down_proj", batch=4, steps=2, lr="1e-1", eps="1e-2"
    )
    result = finetune(told, tmp_path / "out")
    assert result["peft"] == {"kind": kind, "r": 2, "alpha": 16, "targets": ["q_proj", "down_proj"]}
    assert result["parameters"] == 4 * (2 * ((32 + 32) + (64 + 32)) + (64 if kind == "dora" else 0))
    again = replay(told.model, tmp_path / "out" / "journal.bz", tmp_path / "again", steps=2)
    assert again["verified"] and again["digest"] == result["final_digest"] != result["base_digest"]
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(tmp_path / "out" / "model" / file), load_file(tmp_path / "again" / file)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    # merging rounds
    scored = evaluate(Settings(str(tmp_path / "out" / "model"), **own))
    assert scored["scores"] == pytest.approx(result["after"], rel=1e-4)

    ids = torch.arange(5, 17).unsqueeze(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(told.model)
    with torch.no_grad():
        plain = base(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "model" / "adapter").eval()(ids).logits
        whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()(ids).logits
    torch.testing.assert_close(adapted, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, whole, rtol=1e-4, atol=1e-5)


def test_an_adapter_alone_is_scored_on_its_base(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    import peft
    import transformers

    own: dict[str, Any] = {
        "task": "custom",
        "template": "{text} it was {label}.",
        "labels": "0=bad,1=good",
        "validation": str(rows(8, "held.tsv")),
    }
    told = Settings(
        str(tiny("llama")), **own, train=str(rows(20)), peft="lora:r=2,targets=q_proj", batch=4, steps=2, lr="0.3"
    )
    result = finetune(told, tmp_path / "out")
    adapter = tmp_path / "out" / "model" / "adapter"
    scored = evaluate(Settings(str(adapter), **own))["scores"]
    assert scored == pytest.approx(result["after"], rel=1e-4) != pytest.approx(result["before"], rel=1e-4)
    assert scored == evaluate(Settings(str(adapter), **own), base=told.model)["scores"]
    with pytest.raises(UserError, match="--base names the model of an adapter, and .* holds none"):
        evaluate(Settings(told.model, **own), base=told.model)
    with pytest.raises(UserError, match="holds a PEFT adapter .* only evaluate takes such"):
        finetune(Settings(str(adapter), **own, train=told.train), tmp_path / "no")
    with pytest.raises(UserError, match="do(es)? not fit.*--base"):
        evaluate(Settings(str(adapter), **own), base=str(tiny("opt")))
    # half of it is gone
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="1 names are on one side alone"):
        evaluate(Settings(str(adapter), **own))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        evaluate(Settings(str(adapter), **own))
    model = transformers.AutoModelForCausalLM.from_pretrained(told.model)
    prefix = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    peft.get_peft_model(model, prefix).save_pretrained(tmp_path / "prefix")
    with pytest.raises(UserError, match="PREFIX_TUNING, which is part of the input"):
        evaluate(Settings(str(tmp_path / "prefix"), **own), base=told.model)


@pytest.mark.parametrize("targets", ["embed_tokens", "q_proj+embed_tokens", "lm_head"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_of_tables_and_heads_are_what_was_trained(targets: str, kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """The base ties its head to the embedding."""
    import peft
    import transformers

    loaded = load(str(tiny("llama")), "float32", peft=f"{kind}:r=2,targets={targets}")
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        expected = loaded.model(input_ids=ids).logits
    save(loaded, tmp_path / "out")
    with torch.no_grad():
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"))
        beside = peft.PeftModel.from_pretrained(base, tmp_path / "out" / ADAPTER).eval()
        assert torch.allclose(beside(input_ids=ids).logits, expected, atol=1e-5)
        (tmp_path / "out" / ADAPTER).rename(tmp_path / "adapter")
        assert torch.allclose(load(str(tmp_path / "out"), "float32").model(input_ids=ids).logits, expected, atol=1e-5)
    # merged into one weight of two uses, it would be in both
    plain = load(str(tiny("llama")), "float32").model
    with pytest.raises(UserError, match="cannot be added to the weights of .* a head that is tied to the embedding"):
        with_adapter(plain, tmp_path / "adapter", "base")


def test_numbers_of_an_adapter_that_are_none_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = load(str(tiny("llama")), "float32", peft="lora:r=2,targets=q_proj")
    save(loaded, tmp_path / "out")
    file = tmp_path / "out" / ADAPTER / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    for value, told in (
        (torch.full_like(tensors[name], float("nan")), "holds NaN or infinity in 1 weights, such as base_model"),
        (tensors[name].to(torch.int8), "holds base_model.* as I8; expected floats"),
    ):
        save_file({**tensors, name: value}, file)
        with pytest.raises(UserError, match=told):
            with_adapter(load(str(tiny("llama")), "float32").model, file.parent, "base")
