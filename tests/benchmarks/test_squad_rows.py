"""The parts of squad_small, and a run through SFTTrainer on them with a tiny model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from benchmarks import sft_lora, squad_rows
from tests.finetune.conftest import shared_data, tiny
from tests.integrations.conftest import offline

__all__ = ["offline", "shared_data", "tiny"]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"


def test_parts_hold_every_row_once_and_share_no_passage(shared_data: Path) -> None:
    path = shared_data / "squad_small" / "train.jsonl.gz"
    found = squad_rows.parts(path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        every = sorted(json.dumps(json.loads(line)) for line in file)
    assert sorted(json.dumps(row) for rows in found.values() for row in rows) == every
    assert len(found["test"]) >= 160 and len(found["dev"]) >= 64
    passages = [{row["passage"] for row in rows} for rows in found.values()]
    assert sum(map(len, passages)) == len(set.union(*passages))


def test_a_run_tells_its_losses_and_is_rebuilt(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_pretrained(tiny("llama")).save_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("llama"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(source)
    rows = [{"passage": f"a story of {i}", "query": "of what ?", "answer": str(i)} for i in range(8)]
    monkeypatch.setattr(squad_rows, "parts", lambda: {"train": rows, "dev": rows[:2]})
    result = sft_lora.run(tmp_path / "run", str(source), "dev", 1e-3, steps=2, seed=1)
    assert result["before"] > 0 and result["after"] != result["before"] and result["evaluations"] == 2 * 9
