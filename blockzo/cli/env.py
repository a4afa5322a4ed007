"""The command `blockzo env`."""

from __future__ import annotations

from blockzo.cli import shared


def env(as_json: shared.Json = False) -> None:
    """Versions, CPU features, backends of every operation, and a self-test."""
    from blockzo.cli import environment

    raise SystemExit(environment.main(json=as_json))
