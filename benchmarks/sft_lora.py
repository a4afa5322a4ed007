"""TRL's SFTTrainer with LoRA and forward passes alone, SmolLM2-135M on 500 conversations: loss of rows that no run saw.

    python benchmarks/sft_lora.py [--seeds 0 1 2] [--no-save]
    python benchmarks/sft_lora.py --search 1e-3 3e-3      rates on other rows and another seed, nothing is written

Questions about a passage and their answers (`squad_rows`), as messages; the loss counts answers alone. A run that is there
(runs/sft-lora/seed-N/result.json) is read and not repeated. Afterwards base and journal have to give the adapter to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
# TRL sends no telemetry then
os.environ.setdefault("CI", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import blockzo as bz
from benchmarks import squad_rows
from benchmarks.harness import Spread, Table
from blockzo.finetune.models.loading import resolve
from blockzo.integrations.peft import rebuild
from blockzo.integrations.transformers import zo

RUNS = Path(__file__).resolve().parents[1] / "runs" / "sft-lora"
RATE, STEPS, SEARCH_SEED, HELD = 5e-4, 16, 100, 128
METHOD = {"method": "fzoo", "directions": 8, "eps": 1e-2}
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def chats(part: str) -> Dataset:
    """Rows as TRL takes them: messages that are asked, and those that answer."""
    rows = squad_rows.parts()[part]
    told = [squad_rows.conversation(row) for row in (rows if part == "train" else rows[:HELD])]
    return Dataset.from_list([{"prompt": said[:-1], "completion": said[-1:]} for said in told])


def run(folder: Path, source: str, held: str, rate: float, steps: int, seed: int) -> dict[str, Any]:
    """One run on the training rows; the loss of the rows `held` before and after.

    Raises:
        RuntimeError: base and journal give other weights than training did.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    given = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 16, "max_steps": steps, "seed": seed}
    quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 5}
    args = zo(SFTConfig)(str(folder), learning_rate=rate, lr_scheduler_type="linear", **METHOD, **given, **quiet)
    trainer = zo(SFTTrainer)(
        model,
        args,
        train_dataset=chats("train"),
        eval_dataset=chats(held),
        processing_class=tokenizer,
        peft_config=LORA,
    )
    before = trainer.evaluate()["eval_loss"]
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(folder / "adapter"))
    path = folder / "adapter" / "journal.bz"
    journal = bz.Journal.open(path)
    again = rebuild(AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16), journal)
    if bz.digest(again) != bz.digest(trainer.model):
        raise RuntimeError("base and journal give other weights than training did; expected the same bits")
    losses = sum(len(record.losses) for record in journal.records())
    return {
        "before": before,
        "after": after,
        "seconds": seconds,
        "evaluations": losses,
        "journal": path.stat().st_size / 1024,
        "weights": sum(p.numel() for p in again.parameters() if p.requires_grad),
    }


def held_run(seed: int, source: str) -> dict[str, Any]:
    """The run of a seed on the test rows: that on disk, or a new one."""
    folder = RUNS / f"seed-{seed}"
    told = folder / "result.json"
    if not told.is_file():
        (folder / "journal.bz").unlink(missing_ok=True)
        result = run(folder, source, "test", RATE, STEPS, seed)
        told.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return dict(json.loads(told.read_text(encoding="utf-8")))


def add(table: Table, case: str, result: dict[str, Any]) -> None:
    table.add(case, "held-out loss before", Spread.of([result["before"]]), "nats")
    table.add(case, "held-out loss after", Spread.of([result["after"]]), "nats")
    table.add(case, "fall of the held-out loss", Spread.of([result["before"] - result["after"]]), "nats", target=0)
    table.add(case, "evaluations", Spread.of([result["evaluations"]]), "")
    table.add(case, "journal", Spread.of([result["journal"]]), "KiB")
    table.add(case, "weights trained", Spread.of([result["weights"]]), "")
    table.add(case, "seconds of training", Spread.of([result["seconds"]]), "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--search", type=float, nargs="*", default=[], help="rates to try on the rows for that")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a search")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    source = resolve("smollm2-135m", None, print)
    for rate in given.search:
        folder = RUNS / f"search-{rate:g}-{given.steps}"
        (folder / "journal.bz").unlink(missing_ok=True)
        print(f"rate {rate:g}: {run(folder, source, 'dev', rate, given.steps, SEARCH_SEED)}", flush=True)
    if given.search:
        return
    table = Table("sft lora")
    for seed in given.seeds:
        add(table, f"SFTTrainer with LoRA, SmolLM2, 500 conversations, seed {seed}", held_run(seed, source))
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
