"""The measurement of the host's work, run small: launches are left out, and the forward is a moved one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import host
from benchmarks.harness import read
from blockzo.ops.backends import choice
from blockzo.ops.backends.gpu import products


def test_it_measures_the_gpu_backend_without_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, calls, serving = tmp_path / "rows.csv", [], choice.for_tensor
    plain = products.products_kernel
    monkeypatch.setattr(host.Nothing, "__getitem__", lambda self, grid: lambda *a, **o: calls.append(grid))
    monkeypatch.setattr(sys, "argv", ["host.py", "--rounds", "1", "--layers", "1", "--csv", str(rows)])
    assert host.main() == 0
    # one-axis grids of 7 linear layers, the head, the lookup and the small parameters, several times over
    assert len(calls) > 40 and all(len(grid) == 1 for grid in calls)
    assert {row["metric"] for row in read(rows)} == {"moved over plain", "both signs in one over plain"}
    assert products.products_kernel is plain and choice.for_tensor is serving
