"""Noise of a low rank through models, methods and journals, against weights that were moved by materialised noise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.journal import format as file_format
from blockzo.methods.base import Method
from blockzo.optim.step import step_seed
from blockzo.perturb import parameters, traced
from tests.core import zoo
from tests.zoo.harness import Reference

METHODS: list[tuple[Method, int, dict[str, Any]]] = [
    (bz.MeZO(), 1, {}),
    (bz.SPSA(3), 1, {"distribution": "gaussian"}),
    (bz.SPSA(2), 1, {"max_group": 1, "evaluate": "perturbed"}),
    (bz.FZOO(3), 1, {"max_group": 4}),
    (bz.SPZO(2, 2), 2, {}),
    (bz.SPZO(1, 2, "crossed"), 2, {"distribution": "gaussian"}),
    (bz.Decoupled((1, 0, 2)), 3, {}),
]
CASES = [("llama", *case) for case in METHODS] + [(family, *METHODS[k]) for family, k in (("gpt2", 4), ("bert", 2))]
CUTS: dict[int, list[int]] = {1: [], 2: [2], 3: [1, 3]}


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's matrices are small, and would all be moved as copies."""
    monkeypatch.setattr(parameters, "SMALL", 64)


@pytest.mark.parametrize(("family", "method", "blocks", "options"), CASES, ids=lambda value: str(value))
def test_steps_are_those_of_materialised_noise(
    family: str, method: Method, blocks: int, options: dict[str, Any]
) -> None:
    model, batch = zoo.make(family), zoo.batch()
    cut = bz.Blocks(model, CUTS[blocks])
    zo = bz.ZO(model, method=method, blocks=cut, lr=1e-2, eps=1e-2, seed=3, rank=3, **options)
    noise = bz.Noise(step_seed(3, 0), zo.distributions[0], 3)
    expected = [
        Reference(model, cut.layout, noise, zo.eps, lambda m, b: m(**b).loss, batch)(moves)
        for moves in method.tree(blocks).leaf_moves()
    ]
    start = copy.deepcopy(model)
    result = zo.step(batch)
    torch.testing.assert_close(torch.tensor(result.losses), torch.tensor(expected), rtol=2e-5, atol=2e-5)
    assert result.record.rank == 3
    bz.replay_(start, [result.record], cut.layout)
    assert bz.digest(start) == bz.digest(model)


class Reads(nn.Module):
    """A tied table, parts and transposes of a matrix, a view of another form, a stack, and matrices that have full rank."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table, self.fused, self.turned, self.thin, self.stack = (
            nn.Parameter((0.3 * torch.randn(shape, generator=draw)).to(dtype))
            for shape in ((50, 16), (48, 16), (16, 24), (2, 16), (3, 16, 16))
        )
        self.bias = nn.Parameter(torch.zeros(16, dtype=dtype))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = F.embedding(ids, self.table) + self.table[ids]
        q, k, v = self.fused.chunk(3)
        x = x + F.linear(x, q, self.bias) + x @ k.t() + F.linear(x[..., 3:9], v[:, 3:9])
        x = x + (x @ self.turned)[..., :16] + F.linear(x @ self.turned, self.turned)
        x = x + F.linear(F.linear(x, self.thin), self.thin.t()) + F.linear(x, self.stack[1])
        x = x + F.linear(x.repeat(1, 1, 2), self.fused.view(24, 32))[..., :16] / 8
        logits = F.linear(x / x.float().std(-1, keepdim=True).to(x.dtype), self.table)
        return (
            F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        )


def reads(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(50, (5, 4), generator=draw) for _ in range(2))
    return Reads(dtype), {"ids": ids, "labels": labels}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.filterwarnings("ignore:the model hands parameter")
def test_every_way_of_reading_a_matrix(dtype: torch.dtype, distribution: str) -> None:
    model, batch = reads(dtype)
    noise, directions, scales = bz.Noise(9, distribution, 2), [0, 0, 4, 4], [0.05, -0.05, 0.05, 0.0]
    for group in (1, 4):
        found = bz.perturbed_losses(model, noise, directions, scales, lambda: model(**batch).mean(), max_group=group)
        for loss, direction, scale in zip(found, directions, scales, strict=True):
            moved = copy.deepcopy(model).float()
            bz.perturb_(moved, noise, scale, direction)
            with torch.no_grad():
                want = moved(**batch).mean()
                plain = model(**batch).mean()
            close = 2e-5 if dtype == torch.float32 else 0.2
            assert abs(loss - want) <= close * max(1.0, abs(float(want - plain))), (group, direction, scale)


def test_examples_have_directions_of_their_own() -> None:
    model, batch = reads(torch.float32)

    def loss(m: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        found: Tensor = m(**rows)
        return found

    zo = bz.ZO(model, loss, bz.SPSA(2), lr=1e-3, eps=1e-2, per_example=True, rank=2, seed=5)
    start = copy.deepcopy(model)
    result = zo.step(batch)
    block = result.record.blocks[0]
    assert len(block.directions) == 10
    noise = bz.Noise(result.seed, "rademacher", 2)
    slopes = {}
    for direction in range(2):
        for row in range(5):
            values = []
            for sign in (1, -1):
                moved = copy.deepcopy(start)
                bz.perturb_(moved, noise, sign * 1e-2, direction * 5 + row)
                with torch.no_grad():
                    values.append(float(moved(**{k: v[row : row + 1] for k, v in batch.items()})))
            slopes[direction * 5 + row] = (values[0] - values[1]) / (2e-2 * 2 * 5)
    found = {d: c / 1e-3 for d, c in zip(block.directions, block.coefficients, strict=True)}
    assert set(found) == set(slopes)
    assert all(abs(found[d] - slopes[d]) < 1e-3 for d in slopes), (found, slopes)
    bz.replay_(start, [result.record])
    assert bz.digest(start) == bz.digest(model)


def test_a_run_is_resumed_and_rebuilt(tmp_path: Path) -> None:
    path, batch = tmp_path / "run.bzj", zoo.batch()
    options: dict[str, Any] = {"method": bz.SPSA(2), "lr": 1e-3, "rank": 4, "stochastic_rounding": True}

    def begun() -> nn.Module:
        return zoo.make("llama").to(torch.bfloat16)

    model = begun()
    with bz.Journal.create(path, layout=bz.Blocks(model, []).layout, base_digest=bz.digest(model)) as journal:
        zo = bz.ZO(model, journal=journal, **options)
        for _ in range(3):
            zo.step(batch)
    with bz.Journal.resume(path) as journal:
        records = list(journal.records())
    assert [record.rank for record in records] == [4, 4, 4]
    rebuilt = begun()
    bz.replay_(rebuilt, records)
    assert bz.digest(rebuilt) == bz.digest(model)
    other = begun()
    with bz.Journal.resume(path) as journal:
        again = bz.ZO(other, journal=journal, **options)
        assert again.step_number == 3
        again.step(batch)
    zo.journal = None
    zo.step(batch)
    assert bz.digest(other) == bz.digest(model)


def test_the_bytes_of_a_record() -> None:
    updates = (bz.BlockUpdate((0, 1), (0.5, -0.25)), bz.BlockUpdate((7,), (1.0,), distribution="gaussian"))
    plain = bz.Record(3, 9, "rademacher", updates)
    held = {rank: bz.Record(3, 9, "rademacher", updates, rank=rank) for rank in (1, 64)}
    for rank, record in held.items():
        data = file_format.encode_record(record)
        assert file_format.decode_record(data) == record != plain
        # one byte, at the end, and one flag
        assert data[1:-1] == file_format.encode_record(plain)[1:] and data[-1] == rank and data[0] & 16
    data = file_format.encode_record(held[1])
    for wrong in (data[:-1], data[:-1] + b"\0", data[:-1] + b"\x41", bytes([data[0] & ~16]) + data[1:]):
        with pytest.raises(bz.JournalError):
            file_format.decode_record(wrong)


def test_a_reader_without_ranks_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mask of known flags was before there were ranks."""
    data = file_format.encode_record(bz.Record(0, 1, "gaussian", (bz.BlockUpdate((0,), (1.0,)),), rank=4))
    monkeypatch.setattr(file_format, "_RANK", 0)
    with pytest.raises(bz.JournalError, match="bytes or flags that this blockzo does not know"):
        file_format.decode_record(data)


def test_in_place_and_auto() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    before = copy.deepcopy(model)
    zo = bz.ZO(model, method=bz.MeZO(), lr=1e-3, eps=1e-2, rank=3, evaluate="in_place")
    result = zo.step(batch)
    bz.replay_(before, [result.record])
    for one, two in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    planned = bz.ZO(zoo.make("llama"), method="auto", lr=1.0, rank=3)
    assert planned.step(batch).record.rank == 3


def test_what_is_refused() -> None:
    model, batch = zoo.make("llama"), zoo.batch()
    with pytest.raises(ValueError, match="rank is 65"):
        bz.ZO(model, rank=65)
    with pytest.raises(ValueError, match="rank is 0"):
        bz.Record(0, 0, "gaussian", (bz.BlockUpdate((), ()),), rank=0)
    with pytest.raises(ValueError, match="rank is 2; expected None: a captured step"):
        bz.GraphedStep(bz.ZO(model, method=bz.MeZO(), max_group=1, rank=2))
    mode = bz.perturbed(model, bz.Noise(1, "gaussian", 2))
    with pytest.raises(ValueError, match="has rank 2, which a captured or compiled step does not make"):
        mode.moves[0].packed(torch.device("cpu"))
    with pytest.raises(ValueError, match="a low rank, which a compiled forward does not make"), torch.no_grad():
        traced.call(mode, F.linear, (torch.ones(1, 32), next(p for p in model.parameters() if p.shape == (32, 32))), {})
    with mode:
        assert torch.isfinite(model(**batch).loss)
