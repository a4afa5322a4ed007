"""Ctrl-C, SIGTERM and a lost terminal end a run after the step in progress; a second signal ends it at once (the journal is
valid either way). Outside a run they end the command by an exception, so that what was half written is removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from blockzo.finetune.errors import Interrupted

Handler = Callable[[int, FrameType | None], Any]
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def _set(numbers: tuple[int, ...], handler: Handler) -> dict[int, Any]:
    """Handlers that were there before. Only the main thread may set some; elsewhere the caller's own stay in force."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # nohup has a lost terminal ignored
    heard = [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Interrupted, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = _set(tuple(number for number in STOPPING if number != signal.SIGINT), stop)
    try:
        yield
    finally:
        _restore(before)


class Interrupts:
    """While entered, notes the signals; `check()` raises Interrupted once one has come."""

    def __init__(self) -> None:
        self.asked = self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = _set(STOPPING, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._at_once:
            raise Interrupted

    def check(self) -> None:
        if self.asked:
            raise Interrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises Interrupted where it comes: for long work that is done again from its beginning."""
        self._at_once = True
        try:
            self.check()
            yield
            # a library may have taken the exception for one of its own
            self.check()
        finally:
            self._at_once = False
