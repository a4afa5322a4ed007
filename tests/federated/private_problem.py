"""Settings of private runs."""

from __future__ import annotations

from typing import Any

from blockzo.federated.privacy.settings import PrivacySettings
from blockzo.federated.protocol.settings import RunSettings
from tests.federated.problem import settings

CENTRAL: dict[str, Any] = {"mode": "central", "clip": 3.0, "noise_multiplier": 0.7, "delta": 1e-5, "clients": 4}
LOCAL: dict[str, Any] = {"mode": "local", "clip": 3.0, "noise_multiplier": 2.0, "delta": 1e-5}


def private(values: dict[str, Any] = CENTRAL, /, **given: Any) -> PrivacySettings:
    return PrivacySettings(**{**values, **given})


def private_run(values: dict[str, Any], **given: Any) -> RunSettings:
    return settings(privacy=values, weighting="equal", **given)
