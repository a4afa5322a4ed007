"""A record is applied wholly, or refused with every weight and every byte on disk as it was."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import blockzo as bz
from blockzo.journal import format as fmt
from blockzo.journal.record import check_record, float32, pack_floats, unpack_floats
from tests.core import journals

EDGES = [0.0, 1e-45, 1e-39, 2.0**-126, 1.0, 3e38, 3.5e38, 1e39, 1e300, 1e308]
NUMBERS = st.sampled_from([*EDGES, *(-v for v in EDGES)]) | st.floats(-1, 1)
DIRECTIONS = st.integers(0, 2**32 - 2)


def forced(block: bz.BlockUpdate, **values: object) -> bz.BlockUpdate:
    """A block that its own checks would have refused, as other software may make one."""
    for name, value in values.items():
        object.__setattr__(block, name, value)
    return block


@st.composite
def blocks(draw: st.DrawFn) -> bz.BlockUpdate:
    count = draw(st.integers(0, 3))
    directions = tuple(draw(DIRECTIONS) for _ in range(count))
    small = tuple(draw(st.floats(-1, 1)) for _ in range(count))
    block = bz.BlockUpdate(directions, small, draw(NUMBERS), draw(NUMBERS), draw(NUMBERS))
    if draw(st.booleans()):
        wild = NUMBERS | st.sampled_from([math.inf, -math.inf, math.nan])
        forced(block, coefficients=tuple(float32(draw(wild)) for _ in range(count)), decay=draw(wild))
    if count and draw(st.integers(0, 5)) == 0:
        forced(block, directions=(*directions[1:], draw(st.sampled_from([2**32 - 1, 2**32, -1]))))
    if draw(st.integers(0, 5)) == 0:
        forced(block, directions=(*directions, 1))
    return block


@st.composite
def records(draw: st.DrawFn, step: int = 1) -> bz.Record:
    return bz.Record(step, draw(st.integers(0, 2**64 - 1)), "rademacher", (draw(blocks()), draw(blocks())))


def bits(params: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.view(torch.int32).numpy().tobytes() for name, tensor in params.items()}


@given(records(), records(2))
@settings(deadline=None, max_examples=150)
def test_any_record_is_applied_wholly_or_not_at_all(first: bz.Record, second: bz.Record) -> None:
    weights = journals.weights()
    good = journals.record(0)
    before = bits(weights)
    try:
        bz.replay_(weights, [good, first, second], journals.LAYOUT)
    except ValueError as error:
        assert "step" in str(error) or "seed" in str(error)
        assert bits(weights) == before
        for record in (first, second):
            try:
                bz.replay_(weights, [record], journals.LAYOUT)
            except ValueError:
                assert bits(weights) == before
                break
            weights = journals.weights()
        else:
            raise AssertionError("both can be applied one by one") from error
    else:
        again = journals.weights()
        for record in (good, first, second):
            bz.replay_(again, [record], journals.LAYOUT)
        assert bits(again) == bits(weights)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_what_a_journal_takes_can_be_applied_and_the_rest_leaves_the_file(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        with bz.Journal.create(path, layout=journals.LAYOUT) as journal:
            journal.append(journals.record(0))
            before = path.read_bytes()
            every = [data.draw(records(1)), data.draw(records(2))]
            try:
                journal.extend(every)
            except bz.JournalError as error:
                assert path.read_bytes() == before and len(journal) == 1 and "nothing was written" in str(error)
                weights = journals.weights()
                with pytest.raises(ValueError):
                    bz.replay_(weights, every, journals.LAYOUT)
                assert bits(weights) == bits(journals.weights())
            else:
                read = bz.Journal.open(path)
                assert read.left_out is None and read.records()[1:] == every
                bz.replay_(journals.weights(), read.records(), journals.LAYOUT)


class Two(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("options", [{"lr": 1e39, "weight_decay": 1.0}, {"lr": (0.1, 1e39), "weight_decay": 0.1}])
@pytest.mark.parametrize("journaled", [True, False])
def test_a_step_with_a_decay_that_cannot_be_leaves_everything(tmp_path: Path, options: dict, journaled: bool) -> None:
    model = Two()
    before = bz.digest(model)
    blocks = bz.Blocks(model, [1])
    journal = bz.Journal.create(tmp_path / "j", before, blocks.layout) if journaled else None
    size = (tmp_path / "j").read_bytes() if journaled else None
    zo = bz.ZO(model, lambda m, b: m(b).square().mean(), bz.SPZO(1, 1), blocks, journal=journal, **options)
    with pytest.raises(ValueError, match="cannot be applied|a coefficient is"):
        zo.step(torch.ones(2, 3))
    assert bz.digest(model) == before and zo.step_number == 0
    if journaled:
        assert (tmp_path / "j").read_bytes() == size


def with_bad_step(path: Path, after: int = 0) -> None:
    """What blockzo before this check wrote: a step with a decay beyond float32, on disk before it was refused."""
    journals.write(path, steps=2, finish=False)
    data = path.read_bytes()
    chain = struct.unpack("<I", data[-4:])[0]
    bad = journals.record(2)
    bad = replace(bad, blocks=(bad.blocks[0], replace(bad.blocks[1], decay=1e39)))
    for record in (bad, *map(journals.record, range(3, 3 + after))):
        frame, chain = fmt.encode_frame(fmt.STEP, fmt.encode_record(record), chain)
        data += frame
    path.write_bytes(data)


def test_a_journal_that_ends_with_such_a_step_is_opened_and_goes_on(tmp_path: Path) -> None:
    with_bad_step(tmp_path / "j")
    journal = bz.Journal.open(tmp_path / "j")
    assert len(journal) == 2 and journal.dropped > 50
    assert journal.left_out is not None and "step 2 cannot be applied: block 1 has decay 1e+39" in journal.left_out
    with pytest.raises(bz.JournalError, match=r"step 2 cannot be applied.*resume it"):
        journal.verify()
    weights = journals.weights()
    bz.replay_(weights, journal.records(), journal.layout)
    with bz.Journal.resume(tmp_path / "j") as journal:
        assert journal.left_out is not None
        journal.append(journals.record(2))
    assert bz.Journal.open(tmp_path / "j").left_out is None and len(bz.Journal.open(tmp_path / "j")) == 3


def test_a_journal_that_went_on_after_such_a_step_is_opened_and_says_what_to_do(tmp_path: Path) -> None:
    with_bad_step(tmp_path / "j", after=2)
    data = (tmp_path / "j").read_bytes()
    assert len(bz.Journal.open(tmp_path / "j")) == 2
    with pytest.raises(bz.JournalError, match="2 records follow it.*start another run"):
        bz.Journal.resume(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == data


@given(st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from([1e-45, -1e-45, 1e-39, -0.0, 0.0]), max_size=6))
def test_floats_survive_their_bytes_in_every_float_mode(values: list[float]) -> None:
    plain = struct.pack(f"<{len(values)}f", *values)
    rounded = [float32(v) for v in values]
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            found = [float32(v) for v in values], pack_floats(values), list(unpack_floats(plain, len(values)))
        finally:
            torch.set_flush_denormal(False)
        assert found[1] == plain and struct.pack(f"<{len(values)}d", *found[2]) == struct.pack(
            f"<{len(values)}d", *rounded
        )
        assert found[0] == rounded


@given(st.floats(-1e-37, 1e-37))
def test_float32_rounds_as_the_processor_does(value: float) -> None:
    wanted = struct.unpack("<f", struct.pack("<f", value))[0]
    assert math.copysign(1, float32(value)) == math.copysign(1, wanted) and float32(value) == wanted


def test_flushing_denormals_changes_no_bit_of_a_record_or_an_update() -> None:
    """`torch.set_flush_denormal` is of the user's process, and must not be of the journal."""
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            numbers = tuple(10.0**-e for e in range(36, 46))
            block = bz.BlockUpdate(tuple(range(10)), numbers, decay=1e-3)
            record = bz.Record(0, 7, "gaussian", (block,))
            data = fmt.encode_record(record)
            weights = {
                "w": torch.zeros(70_000),
                "v": torch.full((9,), 1.2e-38),
                "h": torch.zeros(50, dtype=torch.bfloat16),
            }
            bz.replay_(weights, [fmt.decode_record(data)])
            for name, noise in (("w", bz.Noise(3)), ("v", bz.Noise(4, "gaussian"))):
                bz.perturb_({name: weights[name]}, noise, 1e-40)
        finally:
            torch.set_flush_denormal(False)
        held = [t.view(torch.uint8).numpy().tobytes() for t in weights.values()]
        results.append((data, zlib.crc32(b"".join(held)), held))
    assert results[0] == results[1]
    assert any(results[0][2][0])


def test_check_record_names_what_is_wrong() -> None:
    good = journals.record(1)
    assert check_record(good, 2) is good
    with pytest.raises(ValueError, match="2 blocks; expected 3"):
        check_record(good, 3)
