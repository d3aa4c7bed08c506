"""Ctrl-C is Ctrl-C, whatever it hit: Python and ZenML each have a spot where it becomes something else."""

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from zenml.exceptions import RunInterruptedException
from zenml.orchestrators.signal_handler import SignalHandler

from stacks.orchestrator.attempt import STOPS


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C came while the block runs; a block that it made fail ends with `KeyboardInterrupt`.

    Python drops the exception where it hits a finalizer or a collector's callback, what it interrupts may fail in
    words of its own (a request, a transaction), and ZenML does not ask the handler before its own when the signal
    comes while it puts its own in place.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    seen = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        seen.set()
        previous(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen.is_set
    except RunInterruptedException as error:
        if _signal_behind(error) == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        if seen.is_set() and not isinstance(error, STOPS):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, previous)


def _signal_behind(error: RunInterruptedException) -> int | None:
    """The number of the signal in whose ZenML handler the error was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is SignalHandler._handle.__code__:
            return int(frame.f_locals["signum"])
    return None
