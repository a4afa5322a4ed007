"""Several processes that must all end well, as the ranks of one group."""

from __future__ import annotations

from collections.abc import Sequence

from tests.warm import Started


def run_together(commands: Sequence[Sequence[object]], seconds: float = 280) -> None:
    """Starts them all in the repository, each a module and its arguments; fails with what they said unless all end with 0."""
    running = [Started(["-m", *command]) for command in commands]
    try:
        codes = [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * len(commands), "\n".join(text for process in running for text in process.communicate())
