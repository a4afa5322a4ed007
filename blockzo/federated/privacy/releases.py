"""What a client has sent with noise of its own: once a round, for ever, whatever the server asks.

A second answer to the same round with fresh noise would let whoever sees both average the noise away, and would cost privacy
twice. So the last answer is on disk before it leaves; asked again, the client sends the same bytes; asked for an earlier round,
after a reset that the server ordered, say, it refuses.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


class SpentRound(ValueError):
    """A round in which a client has nothing more to give."""


class Releases:
    """Args:
    path: of the file; None: kept in memory, and lost with the process.
    tag: of the run (`run_tag`).

    Raises:
        ValueError: the file is another run's or damaged.
    """

    def __init__(self, path: Path | None, tag: bytes) -> None:
        self._path, self._tag = path, tag.hex()
        self._last, self._answer = -1, b""
        if path is not None and path.exists():
            try:
                held = json.loads(path.read_text())
                found, self._last, self._answer = held["run"], int(held["round"]), bytes.fromhex(held["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is no list of this client's releases ({error}); restore it") from None
            if found != self._tag:
                raise ValueError(
                    f"{path} is of the run {found}, this one is {self._tag}; what both cost adds up: keep the client's state "
                    "of this run elsewhere"
                )

    def before(self, number: int) -> bytes | None:
        """The answer that was given in round `number`; None: it has not been answered.

        Raises:
            ValueError: the round lies before the last one answered.
        """
        if number < self._last:
            raise ValueError(
                f"round {number} lies before round {self._last}, the last that this client answered; a second answer would "
                "spend its privacy twice"
            )
        return self._answer if number == self._last else None

    def add(self, number: int, answer: bytes) -> None:
        """Writes down what is about to leave."""
        self._last, self._answer = number, answer
        if self._path is None:
            return
        new = self._path.with_name(self._path.name + ".new")
        with open(new, "w") as file:
            json.dump({"run": self._tag, "round": number, "answer": answer.hex()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
