"""`blockzo replay` of journals that a Trainer wrote: whole models and adapters, checked, and refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file
from typer.testing import CliRunner

import blockzo as bz
from blockzo.cli.app import app
from blockzo.finetune.errors import UserError
from blockzo.integrations.replay import replay
from blockzo.integrations.transformers import ZOConfig, ZOTrainer
from tests.integrations.trained import rows, settings

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def trained(folder: Path, source: Path, dtype: torch.dtype, **given: Any) -> ZOTrainer:
    options = {"peft_config": LORA} if given.pop("adapter") else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    if options:
        from blockzo.integrations.peft import adapter

        model = adapter(model, LORA, seed=3)
    args: ZOConfig = settings(folder, max_steps=3, save_strategy="no", **given)
    run = ZOTrainer(model, args, train_dataset=rows())
    run.train()
    run.save_model(str(folder / "saved"))
    return run


@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trainer_s_journal_gives_what_it_saved(
    adapter: bool, dtype: torch.dtype, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny("llama")
    run = trained(tmp_path, source, dtype, adapter=adapter)
    path, out = tmp_path / "saved" / "journal.bz", tmp_path / "again"
    told = CliRunner().invoke(app, ["replay", str(source), str(path), str(out)])
    assert told.exit_code == 0 and bz.digest(run.model) in told.stdout and "verified against" in told.stdout, told
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    saved, again = load_file(tmp_path / "saved" / name), load_file(out / name)
    assert saved.keys() == again.keys() and all(torch.equal(saved[n], again[n]) for n in saved)
    assert (out / "tokenizer_config.json").is_file()
    first = replay(str(source), path, tmp_path / "first", steps=1)
    # what is left of the journal was replayed too, and led to its end
    assert first["steps"] == 1 and first["verified"] and first["digest"] != bz.digest(run.model)


def test_what_is_not_the_base_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    trained(tmp_path, tiny("llama"), torch.float32, adapter=False)
    path = tmp_path / "journal.bz"
    other = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"))
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(bz.JournalError, match="is not the model this journal begins at"):
        replay(str(tmp_path / "other"), path, tmp_path / "out")
    with pytest.raises(UserError, match="holds 3 steps; expected 0 to 3"):
        replay(str(tiny("llama")), path, tmp_path / "out", steps=4)
    own = bz.Journal.create(
        tmp_path / "own.bz", metadata={"trainer": "Z", "model": {"class": "Trainer", "dtype": None}}
    )
    own.close()
    with pytest.raises(bz.JournalError, match="has no end"):
        replay(str(tiny("llama")), own.path, tmp_path / "out")
    with pytest.raises(UserError, match="of the class .Trainer., which is none of transformers'"):
        replay(str(tiny("llama")), own.path, tmp_path / "out", partial=True)
    assert not (tmp_path / "out").exists()
