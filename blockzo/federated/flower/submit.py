"""Keeps a run going to its result: starts the app, and again when its ServerApp is gone, since Flower cannot resume a run.

    python -m blockzo.federated.flower.submit examples/flower CONNECTION --run-name first --run-config 'clients=2'

To be run on the SuperLink's host, as its user: it looks there whether the ServerApp lives. Started again after a crash of
the whole host it goes on with the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blockzo.federated.flower.plan import is_served, server_folder

log = logging.getLogger("blockzo.federated")

REST, LOOK, START, GONE = 2.0, 15.0, 120.0, 3.0
"""Seconds: between two tries to start; between two looks at Flower's list of runs; that a ServerApp may take to begin;
after which a ServerApp that is not seen any more is gone."""


def flwr(
    *arguments: str, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = (), seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Flower's command line; one that takes too long counts as failed."""
    command = [*prefix, "flwr", *arguments]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:g} s")


class Submission:
    """One run of an app.

    Args:
        connection: of Flower's config.toml.
        run_config: settings as `flwr run` takes them, besides the run's name.
        state: folder of the server's state, where it is not $BLOCKZO_STATE.
        prefix: put before Flower's commands.

    Attributes: `submitted`, how often the app was started.
    """

    def __init__(
        self,
        app: Path,
        connection: str,
        run_name: str,
        run_config: Sequence[str] = (),
        state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.app, self.connection, self.environment, self.prefix = app, connection, environment, tuple(prefix)
        self.run_config = [f'run-name="{run_name}"', *run_config]
        self.folder = server_folder({"server-state": "" if state is None else os.fspath(state), "run-name": run_name})
        self.submitted = 0

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return flwr(*arguments, environment=self.environment, prefix=self.prefix)

    def submit(self) -> str:
        """Starts the app; Flower's number of the run."""
        options = [part for setting in self.run_config for part in ("--run-config", setting)]
        found = self._flwr("run", os.fspath(self.app), self.connection, "--format", "json", *options)
        try:
            number = str(json.loads(found.stdout)["run-id"])
        except (ValueError, KeyError):
            text = (found.stdout + found.stderr).strip()[-500:]
            raise RuntimeError(f"the run was not taken: {text}") from None
        self.submitted += 1
        return number

    def ended(self, number: str) -> bool:
        """Did a run end, as Flower knows it? Of one whose SuperLink was killed it does not know."""
        found = self._flwr("list", "--run-id", number, self.connection, "--format", "json")
        try:
            return str(json.loads(found.stdout)["runs"][0]["status"]).startswith("finished")
        except (ValueError, KeyError, IndexError):
            return False

    def result(self, seconds: float, starts: Callable[[], int] = lambda: 0) -> dict[str, Any]:
        """Runs the app to its end; what the server wrote as result.

        Args:
            starts: of the SuperLink so far, where that is known.

        Raises:
            TimeoutError: no result within so many seconds.
        """
        path = self.folder / "result.json"
        path.unlink(missing_ok=True)
        end = time.monotonic() + seconds
        number, known, looked, begun, alive = "", 0, 0.0, 0.0, 0.0
        while (now := time.monotonic()) < end:
            if path.exists():
                found: dict[str, Any] = json.loads(path.read_text())
                return found
            if is_served(self.folder):
                alive = now
            if not number or starts() != known:
                known = starts()
                try:
                    number = self.submit()
                    log.warning("run %s was started", number)
                except RuntimeError as error:
                    log.warning("%s; again in %g s", error, REST)
                    number = ""
                    time.sleep(REST)
                begun, looked = time.monotonic(), time.monotonic()
                continue
            # of this run, or none yet
            gone = alive > begun and now - alive > GONE or now - max(alive, begun) > START
            if not gone and alive <= begun and now - looked > LOOK:
                # one that failed before it began
                looked, gone = now, self.ended(number)
            if gone and not path.exists():
                log.warning("run %s ended without a result; see the log of the SuperLink", number)
                number = ""
            time.sleep(0.2)
        raise TimeoutError(f"no result in {self.folder} within {seconds:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a Flower app to its result, and resumes it after crashes.")
    parser.add_argument("app", type=Path, help="folder of the app, for example examples/flower")
    parser.add_argument("connection", help="name of the SuperLink in Flower's config.toml")
    parser.add_argument("--run-name", default="demo")
    parser.add_argument("--run-config", action="append", default=[], metavar="'KEY=VALUE ...'")
    parser.add_argument("--state", type=Path, help="folder of the server's state; $BLOCKZO_STATE where left out")
    parser.add_argument("--seconds", type=float, default=30 * 86400.0)
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    run = Submission(given.app, given.connection, given.run_name, given.run_config, given.state)
    print(json.dumps(run.result(given.seconds), indent=1))


if __name__ == "__main__":
    main()
