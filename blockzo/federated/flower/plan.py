"""What a server must know before its first round, and the journal it goes on from."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockzo.federated.flower import named
from blockzo.federated.flower.places import checked_name, private_folder, state_root
from blockzo.federated.protocol.settings import RoundPolicy, RunSettings
from blockzo.federated.server.right_weights import Replica
from blockzo.federated.server.server import Server

PLAN = "blockzo.federated.flower.tiny:plan"


@dataclass(frozen=True)
class Plan:
    """A run as its owner wants it; the function named by the setting "plan" makes it from the run configuration.

    Attributes:
        settings: what all participants agree on. Of a run that is resumed only `settings.run` is not compared.
        base_digest, layout: `blockzo.digest(model)` and `blocks.layout` of the base model; constants will do, so that a server
            needs no torch.
        policy: how the server runs rounds; a quorum of all clients makes the result a function of the seeds alone.
        replica: weights that follow the journal on the server (`blockzo.federated.client.worker.Weights`), or None.
    """

    settings: RunSettings
    base_digest: str
    layout: Mapping[str, int]
    policy: RoundPolicy = field(default_factory=RoundPolicy)
    replica: Replica | None = None


def server_folder(config: Mapping[str, Any]) -> Path:
    """Folder of a run's journal and result on the server: "server-state" (or $BLOCKZO_STATE) / servers / "run-name"."""
    root = private_folder(private_folder(state_root(str(config.get("server-state") or ""))) / "servers")
    return private_folder(root / checked_name(str(config.get("run-name") or "run")))


def open_server(config: Mapping[str, Any]) -> Server:
    """Creates the run's server, or resumes it where its journal exists.

    Raises:
        ValueError: the journal is of a run with other settings.
        JournalError: the journal is damaged, or another server writes it.
    """
    plan: Plan = named.load(str(config.get("plan") or PLAN), "plan")(config)
    path = server_folder(config) / "journal"
    if not path.exists():
        return Server.create(path, plan.settings, plan.base_digest, plan.layout, plan.policy, plan.replica)
    server = Server.resume(path, plan.policy, plan.replica)
    found, wanted = server.settings.as_dict(), plan.settings.as_dict()
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    others = [f"{name} {found.get(name)!r}, now {wanted.get(name)!r}" for name in names]
    differing = [text for text in others if not text.startswith("run ")]
    if server.base_digest != plan.base_digest:
        differing.append(f"base model {server.base_digest}, now {plan.base_digest}")
    if differing:
        server.close()
        raise ValueError(
            f"{os.fspath(path)} was begun with {'; '.join(differing)}; give the new run another run-name, or the old settings"
        )
    return server


@contextmanager
def serving(folder: Path, seconds: float = 20) -> Iterator[None]:
    """Held by the one server of a run. The ServerApp of a SuperLink that was killed ends a little after it: it is waited for.

    Raises:
        RuntimeError: another server of this run goes on.
    """
    file = os.open(folder / "serving", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + seconds
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise RuntimeError(f"another server runs in {folder}; end it, or choose another run-name")
            time.sleep(0.2)
        yield
    finally:
        os.close(file)


def is_served(folder: Path) -> bool:
    """Is there a server of this run?"""
    try:
        file = os.open(folder / "serving", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _locked(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
