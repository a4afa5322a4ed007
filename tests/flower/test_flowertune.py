"""The template for instruction tuning: its settings and hooks, run on a tiny model over a grid in one process."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzo.federated.client.client import Client
from blockzo.federated.flower import server_app, text
from blockzo.federated.flower.plan import server_folder
from tests.finetune.conftest import tiny  # noqa: F401 - a fixture
from tests.flower.local_grid import LocalGrid

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

APP = Path(__file__).parents[2] / "examples" / "flowertune"
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("zo_tune_server", APP / "zo_tune" / "server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hooks


def test_two_owners_of_conversations_tune_an_adapter_on_four_bits(
    tiny: Callable[[str], Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    torch.set_num_threads(1)
    model = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_pretrained(tiny("llama")).save_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("llama"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    told = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config = {**told, "model": str(model), "rounds": 2, "local-steps": 2, "max-length": 64, "batch": 3, "lr": "1e-2"}
    assert config["quantize"] == "int4" and config["task"] == "sft" and config["peft"].startswith("lora")
    grid = {}
    for node, answer in enumerate(("yes", "no")):
        said = [{"role": "user", "content": "this ?"}, {"role": "assistant", "content": answer}]
        (tmp_path / f"{node}.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 10)
        grid[node] = Client(text.worker({**config, "train": str(tmp_path / f"{node}.jsonl")}))
    monkeypatch.setattr("blockzo.federated.flower.server_app.bound_waits", lambda: None)
    config |= {"identity": "registered", "train": str(tmp_path / "0.jsonl"), "evaluate-every": 1}
    server_app.run(LocalGrid(grid), config, hooks())
    folder = server_folder(config)
    result = json.loads((folder / "result.json").read_text())
    assert result["rounds"] == 2 and len(result["scores"]) == 2
    assert {about["digest"] for about in result["clients"].values()} == {result["digest"]} and len(
        result["clients"]
    ) == 2
    # before the first round nothing, then more and more
    assert [rounds for rounds, _ in result["metrics"]] == [0, 2]
    assert result["metrics"][0][1]["adapter"] == 0.0 < result["metrics"][1][1]["adapter"]
