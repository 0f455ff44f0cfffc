"""When a run is to stop: a signal that came, or a deadline that passed."""

import signal
import threading
import time
from contextlib import contextmanager
from math import inf

REPEAT_SECONDS = 1


class Stopped(Exception):
    """Raised inside an evaluation when the run is to stop."""


class Stop:
    """Why to stop, if at all; a training loop asks at every step."""

    def __init__(self, deadline=inf):
        self.signal, self.deadline = None, deadline

    def reason(self):
        """The reason to stop now, as text; None to go on."""
        if self.signal is not None:
            return f"signal {self.signal}"
        return "the time is up" if time.monotonic() >= self.deadline else None

    def check(self, deadline=True):
        """Raise Stopped if there is a reason; without `deadline`, if a signal came."""
        if self.reason() if deadline else self.signal:
            raise Stopped


@contextmanager
def stop_on_signals(deadline=inf):
    """A Stop that the first SIGTERM or SIGINT sets; another one more than a second later acts as it did before.

    One stop may come as two signals: coreutils' `timeout` sends its own to the command and to its group. Signals
    reach the main thread only: elsewhere the deadline alone counts. deadline: of time.monotonic().
    """
    stop, kept, first = Stop(deadline), {}, None

    def restore():
        while kept:
            signal.signal(*kept.popitem())

    def handle(number, frame):
        nonlocal first
        stop.signal, now = signal.Signals(number).name, time.monotonic()
        first = now if first is None else first
        if now > first + REPEAT_SECONDS:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            kept[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
