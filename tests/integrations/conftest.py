"""Nothing is sent or fetched; tiny models and stories15M are those of the fine-tuning tests."""

from __future__ import annotations

import pytest

from tests.finetune.conftest import stories, tiny

__all__ = ["offline", "stories", "tiny"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # TRL sends no telemetry then
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
