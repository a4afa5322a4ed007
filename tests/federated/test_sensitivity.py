"""One unit moves a release by no more than epsilon is computed for: searched, not tried (sensitivity.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blockzo as bz
from blockzo.federated.privacy import settings as privacy
from blockzo.federated.protocol.settings import RoundPolicy
from tests.federated.sensitivity import Pair, Scene, search

SCENES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "central example": ("central", "example", {}),
    "central example, one-sided, quorum": (
        "central", "example", {"method": bz.OneSided(2), "policy": RoundPolicy(quorum=3, digest_every=0)},
    ),
    "central client": ("central", "client", {}),
    "central client, quorum": ("central", "client", {"policy": RoundPolicy(quorum=3, digest_every=0)}),
    "central client, two of three": (
        "central", "client", {"policy": RoundPolicy(clients=2, quorum=2, digest_every=0), "local_steps": 2},
    ),
    "local example": ("local", "example", {}),
    "central example, a direction an example": ("central", "example", {"per_example": True}),
    "central client, a direction an example": ("central", "client", {"per_example": True, "local_steps": 2}),
    "local example, a direction an example": ("local", "example", {"per_example": True}),
    "local client": ("local", "client", {"local_steps": 2, "policy": RoundPolicy(quorum=2, digest_every=0)}),
}  # fmt: skip


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "discrete_gaussian", lambda variance: 0)


@pytest.mark.parametrize("name", SCENES)
def test_one_unit_moves_a_release_by_the_bound_at_most(name: str, no_noise: None, tmp_path: Path) -> None:
    mode, unit, given = SCENES[name]
    pair = Pair(tmp_path, Scene(mode, unit, **given))
    largest = search(pair, 60, seed=1)
    pair.close()
    # and the search goes as far as it may
    assert 0.9 < largest <= 1.0


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", SCENES)
def test_a_hundred_thousand_inputs(name: str, no_noise: None, tmp_path: Path) -> None:
    mode, unit, given = SCENES[name]
    count = -(-100_000 // len(SCENES))
    pair = Pair(tmp_path, Scene(mode, unit, **given))
    largest = search(pair, count, seed=2)
    pair.close()
    print(f"{name}: {largest:.9f} of the bound over {count} inputs")
    assert largest <= 1.0
