"""Digests of weights, and the journal: beside hashing, writing and reading the same bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

import blockzo as bz
from benchmarks.conftest import Timed

RECORDS = 1000


def record(step: int, directions: int) -> bz.Record:
    coefficients = tuple(float(torch.tensor(1e-6 * (step + k + 1))) for k in range(directions))
    return bz.Record(step, 1000 + step, "rademacher", (bz.BlockUpdate(tuple(range(directions)), coefficients),))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("operation", ["sha256", "digest"])
def test_digest(timed: Timed, operation: str, dtype: torch.dtype) -> None:
    tensors = {str(k): torch.full((1 << 20,), float(k)).to(dtype) for k in range(4)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    group = f"digest {size >> 20} MiB {dtype}"
    if operation == "sha256":
        data = memoryview(bytes(size))
        return timed(group, lambda: hashlib.sha256(data).digest(), lambda: None, base=True, moved=size)

    def check() -> None:
        values = torch.tensor([1.0, -2.0])
        own = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        if bz.digest({"w": values}) != "bz1-" + hashlib.sha256(f"w float32 2 {own}\n".encode()).hexdigest():
            raise RuntimeError("digest is not the documented one: nothing was timed")

    timed(group, lambda: bz.digest(tensors), check, moved=size)


def written(path: Path, count: int, directions: int) -> list[bz.Record]:
    records = [record(step, directions) for step in range(count)]
    with bz.Journal.create(path) as journal:
        journal.extend(records)
    if bz.Journal.open(path).records() != records:
        raise RuntimeError("a journal does not hold what was appended: nothing was timed")
    return records


@pytest.mark.parametrize("directions", [1, 64])
@pytest.mark.parametrize("operation", ["write and fsync", "append"])
def test_append(timed: Timed, operation: str, directions: int, tmp_path: Path) -> None:
    """One record, on disk when the call returns."""
    group = f"journal append, {directions} directions"
    written(tmp_path / "small", 3, directions)
    with bz.Journal.create(tmp_path / "journal") as journal:
        before = (tmp_path / "journal").stat().st_size
        journal.append(record(0, directions))
        size = (tmp_path / "journal").stat().st_size - before
        if operation == "append":
            return timed(group, lambda: journal.append(record(journal.next_step, directions)), lambda: None, moved=size)
    with (tmp_path / "plain").open("ab", buffering=0) as file:

        def write() -> None:
            file.write(bytes(size))
            os.fsync(file.fileno())

        timed(group, write, lambda: None, base=True, moved=size)


@pytest.mark.parametrize("directions", [1, 64])
@pytest.mark.parametrize("operation", ["read_bytes", "open"])
def test_read(timed: Timed, operation: str, directions: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, RECORDS, directions)
    group, size = f"journal read, {RECORDS} records of {directions} directions", path.stat().st_size
    if operation == "read_bytes":
        return timed(group, path.read_bytes, lambda: None, base=True, moved=size)
    timed(group, lambda: bz.Journal.open(path).records(), lambda: None, moved=size)
