"""Runs on the device that is not there (`far.py`) and on the CPU, and what they left, as JSON: for `test_devices.py`.

python -m tests.finetune.on_far '{"folder": ..., "finetune": [settings, ...], "score": [settings, ...]}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from blockzo import Journal
from blockzo.federated.client.finetuning import log_prior
from blockzo.finetune import Settings, evaluate, finetune, replay
from blockzo.finetune.prepare import prepare
from tests.finetune import far

DEVICES = {"near": "cpu", "far": far.NAME}
HOLDERS = ("prepare", "rebuild", "models.devices")


@contextmanager
def there(device: str) -> Iterator[None]:
    """Inside, every name of a device means this one."""
    with ExitStack() as stack:
        stack.enter_context(patch("blockzo.finetune.models.loading.put", far.put))
        for holder in HOLDERS:
            stack.enter_context(patch(f"blockzo.finetune.{holder}.find_device", lambda name: torch.device(device)))
        yield


def run(settings: Settings, folder: Path, device: str) -> dict[str, Any]:
    with there(device):
        result = finetune(settings, folder)
        again = replay(settings.model, folder / "journal.bz", folder / "again")
        scored = evaluate(Settings(**{**settings.as_dict(), "model": str(folder / "model")}))
    return {
        "device": result["device"],
        "digest": result["final_digest"],
        "again": again["digest"],
        "losses": [loss for record in Journal.open(folder / "journal.bz").records() for loss in record.losses],
        "after": result["after"],
        "scored": {"device": scored["device"], **scored["scores"]},
    }


@torch.no_grad()
def score(settings: Settings) -> dict[str, Any]:
    """Loss of a batch, with the shares of labels that virtual clients add to the logits; what is written where answers are."""
    found: dict[str, Any] = {}
    for name, device in DEVICES.items():
        with there(device):
            prepared = prepare(settings)
        batch = prepared.scorer.batch(prepared.train, [0, 1])
        if prepared.task is not None:
            batch["log_prior"] = log_prior(prepared.train.labels, len(prepared.task.words))
        assert prepared.loaded.device.type == torch.device(device).type
        found[name] = float(prepared.scorer.loss(prepared.model, batch))
        writer = prepared.scorer.writer
        if writer is not None:
            with patch("torch.tensor", far.tensor):
                found[f"{name} writes"] = writer.write(prepared.model, [prepared.train.ids[row][:9] for row in (0, 1)])
    return found


def main() -> None:
    asked = json.loads(sys.argv[1])
    folder = Path(asked["folder"])
    runs = [
        {name: run(Settings(**case), folder / f"{number}-{name}", device) for name, device in DEVICES.items()}
        for number, case in enumerate(asked["finetune"])
    ]
    print(json.dumps({"finetune": runs, "score": [score(Settings(**case)) for case in asked["score"]]}))


if __name__ == "__main__":
    main()
