"""No two directions of a run share their noise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockzo as bz
from blockzo.contract import ROUNDING_DIRECTION
from blockzo.federated.protocol.seeds import chosen, first_direction, round_seed
from blockzo.federated.server.server import Server
from blockzo.journal.outside import MOST_SCALARS
from blockzo.methods.base import Method
from tests.federated.problem import network, settings

RUN = bytes(range(16))


def test_many_rounds_have_as_many_seeds() -> None:
    seeds = {round_seed(RUN, number) for number in range(100_000)}
    assert len(seeds) == 100_000
    assert not seeds & {round_seed(bytes(16), number) for number in range(1000)}


@given(st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16))
def test_a_seed_leads_back_to_its_round(number: int, run: bytes) -> None:
    """The Feistel network undone: what has an inverse has no collisions."""
    seed = round_seed(run, number)
    left, right = seed >> 32, seed & 0xFFFFFFFF
    for step in reversed(range(4)):
        word = hashlib.blake2s(bytes((step,)) + left.to_bytes(4, "little"), key=run, digest_size=4, person=b"bz-seed")
        left, right = right ^ int.from_bytes(word.digest(), "little"), left
    assert (left, right) == (0, number)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 6))
def test_directions_of_slots_and_steps_do_not_overlap(slots: int, steps: int, count: int) -> None:
    found = [
        direction
        for slot in range(slots)
        for step in range(steps)
        for direction in range(
            first_direction(slot, step, steps, count), first_direction(slot, step, steps, count) + count
        )
    ]
    assert sorted(found) == list(range(slots * steps * count))


def test_directions_end_before_that_of_rounding() -> None:
    assert first_direction(0, 0, 1, ROUNDING_DIRECTION) == 0
    with pytest.raises(ValueError, match="fewer local steps"):
        first_direction(1, 0, 1, ROUNDING_DIRECTION - 1)
    with pytest.raises(ValueError, match="expected a number"):
        round_seed(RUN, 1 << 32)


def test_the_choice_depends_on_the_names_alone_and_is_fair() -> None:
    names = [f"client-{i}" for i in range(10)]
    assert chosen(RUN, 3, 0, names, 4) == chosen(RUN, 3, 0, names[::-1], 4)
    assert chosen(RUN, 3, 0, names, 4) != chosen(RUN, 3, 1, names, 4)
    assert chosen(RUN, 3, 0, names, None) == sorted(names)
    counts = dict.fromkeys(names, 0)
    for number in range(1000):
        for name in chosen(RUN, number, 0, names, 3):
            counts[name] += 1
    assert all(240 < count < 360 for count in counts.values())


@pytest.mark.parametrize(
    ("method", "local_steps", "slots"),
    [(bz.SPSA(2), 1, 1 << 16), (bz.SPSA(1024), 512, MOST_SCALARS // (512 * 2 * 1024))],
    ids=["numbers of a message", "scalars of a record"],
)
def test_no_more_clients_are_asked_than_a_round_has_room_for(
    method: Method, local_steps: int, slots: int, tmp_path: Path
) -> None:
    run = settings(method, own_directions=True, local_steps=local_steps)
    assert run.slots == slots
    first_direction(slots - 1, local_steps - 1, local_steps, max(run.directions))
    server = Server.create(tmp_path / "server.bz", run, bz.digest(network()), bz.Blocks(network(), [1]).layout)
    names = [str(number) for number in range(70_000)]
    tasks = server.open_round(names, 0.0)
    assert len(tasks) == slots
    # the next attempt asks those who have their directions
    server.close_round()
    assert set(server.open_round(names, 1.0)) <= set(tasks)
    server.close()
