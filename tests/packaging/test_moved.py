"""Modules that have another name now are found under the old one, and say so."""

from __future__ import annotations

import importlib
import sys

import pytest

import blockzo
from blockzo.moved import HOMES


@pytest.mark.parametrize("old", HOMES)
def test_an_old_name_leads_to_what_is_there(old: str) -> None:
    sys.modules.pop(f"blockzo.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"blockzo.{HOMES[old].split()[0]}"):
        module = importlib.import_module(f"blockzo.{old}")
    for home in HOMES[old].split():
        held = importlib.import_module(f"blockzo.{home}")
        own = [name for name, value in vars(held).items() if getattr(value, "__module__", None) == held.__name__]
        assert all(hasattr(module, name) for name in own)
    with pytest.raises(AttributeError, match="it is now blockzo"):
        module.nothing_of_this_name  # noqa: B018


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_that_users_import() -> None:
    from blockzo.estimators import SPZO  # type: ignore[import-not-found]
    from blockzo.evaluate import PerturbedExecutor  # type: ignore[import-not-found]
    from blockzo.federated.messages import Refused  # type: ignore[import-not-found]  # noqa: F401
    from blockzo.federated.settings import RunSettings  # type: ignore[import-not-found]
    from blockzo.finetune.tasks import find_task  # type: ignore[import-not-found]

    from blockzo.federated.client import Client
    from blockzo.federated.privacy import PrivacySettings
    from blockzo.federated.server import Server
    from blockzo.finetune.data import read_examples
    from blockzo.finetune.models import load
    from blockzo.journal import Journal
    from blockzo.optim import ZO, StepResult

    assert SPZO is blockzo.SPZO and ZO is blockzo.ZO and Journal is blockzo.Journal
    assert StepResult is blockzo.StepResult
    assert all(
        map(callable, (PerturbedExecutor, Client, Server, PrivacySettings, RunSettings, read_examples, load, find_task))
    )


def test_another_unknown_module_is_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("blockzo.never_was")
