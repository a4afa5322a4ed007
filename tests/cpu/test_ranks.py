"""Tensor-parallel and FSDP shards in real processes over gloo: what they run is tests/cpu/ranks.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from tests.together import run_together

# starts processes that talk
pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
@pytest.mark.parametrize("ranks", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_shards_of_processes(ranks: int, tmp_path: Path) -> None:
    run_together([["tests.cpu.ranks", rank, ranks, tmp_path / "meeting"] for rank in range(ranks)])


def test_importing_blockzo_leaves_dtensors_alone() -> None:
    code = (
        "import sys, torch, blockzo as bz; bz.perturb_({'w': torch.ones(3)}, bz.Noise(1), 1.0); "
        "print('torch.distributed.tensor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
