"""Adapters from a seed: the same first weights whatever torch's generator holds, and rebuilt from base and journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import blockzo as bz
from blockzo.integrations.peft import adapter, note_of, rebuild, seeded
from tests.core import zoo

LINEARS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=LINEARS),
    "dora": peft.LoraConfig(r=4, target_modules=LINEARS, use_dora=True),
    "rslora gaussian": peft.LoraConfig(r=4, target_modules=LINEARS, use_rslora=True, init_lora_weights="gaussian"),
    "embeddings": peft.LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"),
    "lokr": peft.LoKrConfig(r=4, target_modules=LINEARS),
    "ia3": peft.IA3Config(target_modules=LINEARS, feedforward_modules=["down_proj"]),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_base_seed_and_journal_rebuild_the_adapter(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = adapter(zoo.make("llama"), KINDS[kind], seed=5)
    torch.manual_seed(2)
    assert bz.digest(adapter(zoo.make("llama"), KINDS[kind], seed=5)) == bz.digest(model)
    other = bz.digest(adapter(zoo.make("llama"), KINDS[kind], seed=6))
    # IA3 begins with ones and draws nothing
    assert (other == bz.digest(model)) == (kind == "ia3")
    blocks = bz.Blocks(model, [])
    with bz.Journal.create(tmp_path / "j", bz.digest(model), blocks.layout, note_of(model)) as journal:
        zo = bz.ZO(model, None, "fzoo", blocks, lr=1e-2, journal=journal)
        for step in range(2):
            zo.step(zoo.batch(seed=step))
        journal.finish(bz.digest(model))
    size = (tmp_path / "j").stat().st_size
    assert size < 4096 and bz.digest(rebuild(zoo.make("llama"), bz.Journal.open(tmp_path / "j"))) == bz.digest(model)
    with pytest.raises(bz.JournalError, match="expected the base model"):
        rebuild(zoo.make("llama", seed=1), bz.Journal.open(tmp_path / "j"))


def test_distributions_are_those_of_peft() -> None:
    with seeded(3):
        uniform, normal, rand, randn = (
            torch.empty(4000).uniform_(-2, to=4),
            torch.empty(4000).normal_(1, std=3),
            *draws(),
        )
    assert uniform.min() >= -2 and uniform.max() < 4 and uniform.mean() == pytest.approx(1, abs=0.1)
    assert uniform.std() == pytest.approx(12**-0.5 * 6, rel=0.05)
    assert normal.mean() == pytest.approx(1, abs=0.2) and normal.std() == pytest.approx(3, rel=0.05)
    assert 0 <= rand.min() and rand.max() < 1 and rand.mean() == pytest.approx(0.5, abs=0.03)
    assert randn.std() == pytest.approx(1, rel=0.05) and randn.shape == rand.shape == (40, 100)
    # by the contract alone
    assert torch.equal(randn, bz.Noise(3, "gaussian").sample(6, (40, 100)))
    lora = adapter(zoo.make("llama"), KINDS["lora"]).base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"]
    bound = lora.weight.shape[1] ** -0.5
    assert 0.9 * bound < lora.weight.abs().max() <= bound


def draws() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(40, 100), torch.randn(40, 100)


def test_other_draws_and_journals_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch's randperm"), seeded(0):
        torch.randperm(5)
    model = zoo.make("llama")
    for metadata, text in [
        ({}, "expected how it was made"),
        ({"adapter": {"config": {"peft_type": "LORA", "auto_mapping": {"a": "b"}}, "seed": 1}}, "names code"),
    ]:
        path = tmp_path / text
        bz.Journal.create(path, layout=bz.Blocks(model, []).layout, metadata=metadata).close()
        with pytest.raises(bz.JournalError, match=text):
            rebuild(model, bz.Journal.open(path))
    assert note_of(nn.Linear(1, 1)) == {}
