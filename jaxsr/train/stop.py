"""Stopping on a signal: after the step that runs, or at once while waiting for data, with the state saved."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

Item = TypeVar("Item")

_SAID = b"\njaxsr: stops after this step and saves; Ctrl-C again quits at once\n"


class Stopped(Exception):
    """SIGTERM came; the state has been saved."""


class Interrupted(Stopped):
    """Ctrl-C, likewise."""


class StopSignals:
    """SIGTERM and Ctrl-C become a request that the training loop asks for; on every process of a job after the same step.

    A second Ctrl-C ends the process at once, wherever it is. Outside the context signals mean what they meant before.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if jax.process_count() == 1:  # of several, JAX's coordination service takes SIGTERM
            with contextlib.suppress(ValueError):  # not the main thread: whoever called us has the signals
                for number in (signal.SIGTERM, signal.SIGINT):
                    if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                        self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def requested(self, step: int) -> bool:
        """Whether to leave after `step`: processes learn of a signal at different moments, but must leave after the same one."""
        return self._came is not None if jax.process_count() == 1 else bool(multihost_utils.reached_preemption_sync_point(step))

    def next_of(self, items: Iterator[Item]) -> Item | None:
        """The next of endless `items`; None where a signal came before it did: the wait for a volume may be longer than the grace is."""
        try:
            self._waiting = True
            if self._came is not None:
                return None
            item = next(items)
            self._waiting = False
            return item
        except _Woken:
            return None
        finally:
            self._waiting = False

    def error(self, sentence: str) -> Stopped:
        """What to raise once the state is saved."""
        return Interrupted(sentence) if self._came == signal.SIGINT else Stopped(sentence)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # even in the middle of a compiled step, where no handler of Python's would run
            os.write(2, _SAID)  # nothing else may be written from here
        if self._waiting:
            self._waiting = False
            raise _Woken


class _Woken(BaseException):  # that nobody on the way takes for an error of theirs
    """Raised where the main thread waits."""
