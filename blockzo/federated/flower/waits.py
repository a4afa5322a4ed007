"""Flower's waits for the content of a message, with an end.

A message is announced before its content is sent. Where its sender is cut off in between, Flower looks for the content for more
than an hour, and neither server nor node hears of anything else meanwhile. With an end the message counts as lost, and is asked
for again.

    python -m blockzo.federated.flower.waits flower-supernode ARGUMENT...
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.metadata import entry_points

log = logging.getLogger("blockzo.federated")

SECONDS = 15.0
"""For the content of one message: a few kilobytes that its sender is about to send."""
_PLACES = ("flwr.supercore.inflatable.inflatable_utils", "flwr.common.inflatable_utils")


def bound_waits(seconds: float = SECONDS) -> bool:
    """Ends waits for content in this process after so many seconds; False where this version of Flower knows no such limit."""
    for place in _PLACES:
        try:
            found = getattr(import_module(place), "pull_objects", None)
        except ModuleNotFoundError:
            continue
        # callers leave it to the default
        defaults = getattr(found, "__kwdefaults__", None) or {}
        if "max_time" in defaults:
            defaults["max_time"] = seconds
            return True
    log.warning("this version of Flower may wait long for a message whose sender was cut off")
    return False


def main(command: list[str]) -> None:
    scripts = entry_points(group="console_scripts", name=command[0]) if command else ()
    if not scripts:
        sys.exit(
            "expected one of Flower's commands: python -m blockzo.federated.flower.waits flower-supernode ARGUMENT..."
        )
    bound_waits()
    sys.argv = command
    sys.exit(next(iter(scripts)).load()())


if __name__ == "__main__":
    main(sys.argv[1:])
