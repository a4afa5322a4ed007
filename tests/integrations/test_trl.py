"""TRL's SFTTrainer without gradients: messages and prompt-completion, its metrics, LoRA rebuilt from base and journal."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel

pytest.importorskip("trl")
from trl import SFTConfig, SFTTrainer

import blockzo as bz
from blockzo.integrations.peft import rebuild
from blockzo.integrations.transformers import ZOConfig, zo

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] }} {% endif %}{% endfor %}"
)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
RUNS = {"tiny": (0.3, 0.03), "stories": (1e-4, 0.5)}
"""Learning rate, and by how much the loss falls at least; a random model has little to learn with."""
ADJECTIVES = ("great", "good", "bad", "terrible")


def completions(count: int = 16) -> Dataset:
    rows = [(f"it was a film of {i} , very", f" {ADJECTIVES[i % 4]}") for i in range(count)]
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in rows])


def messages(count: int = 16) -> Dataset:
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"was film {i} good ?"},
                    {"role": "assistant", "content": ADJECTIVES[i % 4]},
                ]
            }
            for i in range(count)
        ]
    )


def settings(folder: Path, kind: Any = ZOConfig, **given: Any) -> Any:
    plain = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "eps": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return kind(str(folder), **{**plain, **given})


def loaded(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


@pytest.mark.parametrize("form", ["messages", "completions", "accumulated", "spzo"])
def test_metrics_are_those_of_training_and_tokens_count_once(
    form: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    model, tokenizer = loaded(tiny("llama"))
    base, data = copy.deepcopy(model), messages() if form == "messages" else completions()
    kind, given = zo(SFTConfig), {}
    if form == "messages":
        given = {"assistant_only_loss": True, "method": "one-sided", "directions": 2}
    if form == "accumulated":
        given = {"gradient_accumulation_steps": 2, "method": "fzoo", "directions": 2}
    if form == "spzo":
        given = {"method": "spzo", "inner": 2, "blocks": "2"}
    args = settings(tmp_path, kind, learning_rate=1e-3, eval_strategy="steps", eval_steps=1, **given)
    trainer = zo(SFTTrainer)(model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    seen: list[int] = []
    step = trainer.training_step

    def noted(of: Any, inputs: Any, count: Any = None) -> Any:
        seen.append(int(inputs["attention_mask"].sum()))
        return step(of, inputs, count)

    trainer.training_step = noted
    trainer.train()
    first, evaluated, second, _ = trainer.state.log_history[:4]
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} <= set(first)
    assert not any(name.startswith("eval_") for name in (*first, *second))
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} <= set(evaluated)
    each = args.gradient_accumulation_steps
    assert first["num_tokens"] == sum(seen[:each]) > 0
    assert second["num_tokens"] == sum(seen)
    assert 0 < first["entropy"] < 7 and 0 <= first["mean_token_accuracy"] <= 1
    journal = bz.Journal.open(tmp_path / "journal.bz")
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == bz.digest(model) == journal.final_digest
    losses = [sum(record.losses) / len(record.losses) for record in journal.records()]
    assert [first["loss"], second["loss"]] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("name", ["tiny", "stories"])
def test_lora_learns_and_is_rebuilt(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("stories") if name == "stories" else request.getfixturevalue("tiny")("llama")
    model, tokenizer = loaded(folder)
    base, data = copy.deepcopy(model), completions()
    given = {"method": "fzoo", "directions": 4, "learning_rate": RUNS[name][0], "lr_scheduler_type": "constant"}
    args = settings(tmp_path, max_steps=12, **given)
    trainer = zo(SFTTrainer)(
        model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, peft_config=LORA
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - RUNS[name][1]
    trainer.save_model(str(tmp_path / "saved"))
    journal = bz.Journal.open(tmp_path / "saved/journal.bz")
    rebuilt = rebuild(base, journal)
    assert bz.digest(rebuilt) == bz.digest(trainer.model)
    assert journal.path.stat().st_size < 8192
    saved = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held = PeftModel.from_pretrained(saved, tmp_path / "saved", is_trainable=True)
    assert bz.digest(held) == bz.digest(rebuilt)


def test_plain_arguments_of_trl_will_do(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny("llama"))
    plain = SFTConfig(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no", learning_rate=1e-4
    )
    trainer = zo(SFTTrainer)(model, plain, train_dataset=completions(), processing_class=tokenizer)
    trainer.train()
    assert isinstance(trainer.args, SFTConfig) and trainer.args.method == "mezo" and trainer.args.eps == 1e-3
    assert len(bz.Journal.open(tmp_path / "journal.bz")) == 1


def test_the_page_runs(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    first, second, *_, last = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(first.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    model, tokenizer = loaded(tiny("llama"))
    held: dict[str, Any] = {"base": copy.deepcopy(model), "model": model, "rows": completions(), "tokenizer": tokenizer}
    # short
    exec(first.replace("=1000", "=2").replace("=100", "=1").replace("directions=8", "directions=2"), held)
    exec(second, held)
    assert bz.digest(held["model"]) == bz.digest(held["trainer"].model)
    digest = bz.digest(held["trainer"].model)
    # a checkpoint of an adapter, gone on with on the base
    held["model"] = loaded(tiny("llama"))[0]
    resumed = first.replace("=False", '="runs/chat/checkpoint-1"')
    exec(resumed.replace("=1000", "=2").replace("=100", "=1").replace("directions=8", "directions=2"), held)
    assert bz.digest(held["trainer"].model) == digest
    ids = torch.arange(12).view(2, 6)
    model = loaded(tiny("llama"))[0]
    again: dict[str, Any] = {"model": model, "batches": [{"input_ids": ids + i, "labels": ids + i} for i in range(2)]}
    exec(last, again)
    assert len(bz.Journal.open("run.bz")) == 1
