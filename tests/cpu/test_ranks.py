"""Tensor-parallel and FSDP shards in real processes over gloo: what they run is tests/cpu/ranks.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_shards_of_processes(ranks: int, tmp_path: Path) -> None:
    commands = [
        [sys.executable, "-m", "tests.cpu.ranks", str(rank), str(ranks), str(tmp_path / "meeting")]
        for rank in range(ranks)
    ]
    outputs = [(tmp_path / f"rank{rank}.txt").open("w+") for rank in range(ranks)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        for command, out in zip(commands, outputs, strict=True)
    ]
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
        texts = []
        for out in outputs:
            out.seek(0)
            texts.append(out.read())
            out.close()
    assert codes == [0] * ranks, "\n".join(texts)


def test_importing_blockzo_leaves_dtensors_alone() -> None:
    code = (
        "import sys, torch, blockzo as bz; bz.perturb_({'w': torch.ones(3)}, bz.Noise(1), 1.0); "
        "print('torch.distributed.tensor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
