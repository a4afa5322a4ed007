"""The program examples/journal_in_numpy.py, written from the documents alone, gives the bits of `replay_`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import blockzo as bz
from tests.cpu.cases import DTYPES, same_bits, weights

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "journal_in_numpy.py"
LAYOUT = {"a.weight": 0, "a.bias": 0, "b.weight": 1}


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = spec_from_file_location("journal_in_numpy", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def params(dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "a.weight": weights((30, 11), dtype, 1),
        "a.bias": weights(9, dtype, 2),
        "b.weight": weights((4, 300), dtype, 3),
    }


def in_numpy(held: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {n: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy().copy() for n, t in held.items()}


def records(stochastic: bool) -> list[bz.Record]:
    found = []
    for step in range(6):
        kind, other = ("gaussian", "rademacher") if step % 2 else ("rademacher", "gaussian")
        first = bz.BlockUpdate((0, 1, 2), (0.1, -0.02, 1e-40), decay=1e-3 * step)
        second = bz.BlockUpdate(
            *(((7, 2**32 - 2), (0.3, -0.0)) if step < 3 else ((), ())), distribution=other if step % 3 else None
        )
        found.append(
            bz.Record(step, 2**64 - 1 - step, kind, (first, second), (1.0, 2.0), stochastic_rounding=stochastic)
        )
    return [*found, bz.Record(6, 5, "gaussian", (bz.BlockUpdate((0,), (0.5,)), bz.BlockUpdate((0, 1), (0.5, 0.1))))]


def written(path: Path, stochastic: bool) -> Path:
    with bz.Journal.create(path, "base", LAYOUT) as journal:
        for record in records(stochastic):
            journal.append(record)
    return path


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_replay(reader: ModuleType, dtype: torch.dtype, stochastic: bool, tmp_path: Path) -> None:
    held = params(dtype)
    found = reader.replay(in_numpy(held), written(tmp_path / "run.bz", stochastic).read_bytes())
    bz.replay_(held, records(stochastic), LAYOUT)
    for name, wanted in held.items():
        mine = torch.from_numpy(found[name])
        assert same_bits(mine.view(torch.bfloat16) if dtype == torch.bfloat16 else mine, wanted), name


def test_a_last_frame_that_was_cut_is_left_out_and_damage_is_not(reader: ModuleType, tmp_path: Path) -> None:
    data = written(tmp_path / "run.bz", False).read_bytes()
    kinds = [kind for kind, _ in reader.frames(data)]
    steps = kinds.count(1)
    assert steps == 7 and kinds[0] == 0
    last = next(k for k in range(len(kinds), 0, -1) if kinds[k - 1] == 1)
    whole = list(reader.frames(data))
    behind = sum(13 + len(payload) for _, payload in whole[last:])
    assert [kind for kind, _ in reader.frames(data[: len(data) - behind - 3])].count(1) == steps - 1
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    with pytest.raises(ValueError, match="is damaged"):
        list(reader.frames(bytes(flipped)))
    with pytest.raises(ValueError, match="no journal"):
        list(reader.frames(b"x" + data))


def test_the_program(tmp_path: Path) -> None:
    held = params(torch.float32)
    np.savez(tmp_path / "base.npz", **in_numpy(held))
    line = [sys.executable, str(PROGRAM), "base.npz", str(written(tmp_path / "run.bz", False)), "rebuilt.npz"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bz.replay_(held, records(False), LAYOUT)
    rebuilt = np.load(tmp_path / "rebuilt.npz")
    assert all(same_bits(torch.from_numpy(rebuilt[name]), wanted) for name, wanted in held.items())
