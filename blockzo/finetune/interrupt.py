"""Ctrl-C and SIGTERM end a run after the step in progress; a second one ends it at once (the journal is valid either way)."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from blockzo.finetune.errors import Interrupted


class Interrupts:
    """While entered, notes the signals; `check()` raises Interrupted once one has come."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        # only the main thread may set handlers; elsewhere the caller's own stay in force
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Interrupted
