"""Ctrl-C is Ctrl-C, whatever it hit: Python and ZenML each have a spot where it becomes something else."""

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zenml.exceptions import RunInterruptedException
from zenml.orchestrators.signal_handler import SignalHandler

from stacks.orchestrator.attempt import STOPS
from stacks.orchestrator.ctrl_c import noted_interrupt


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C came while the block runs; a block that it made fail ends with `KeyboardInterrupt`.

    Python drops the exception where it hits a finalizer or a collector's callback, what it interrupts may fail in
    words of its own (a request, a transaction), and ZenML does not ask the handler before its own when the signal
    comes while it puts its own in place.
    """
    with noted_interrupt() as pressed:
        try:
            yield pressed
        except RunInterruptedException as error:
            if _signal_behind(error) == signal.SIGINT:
                raise KeyboardInterrupt from error
            raise
        except Exception as error:
            if pressed() and not isinstance(error, STOPS):
                raise KeyboardInterrupt from error
            raise


def _signal_behind(error: RunInterruptedException) -> int | None:
    """The number of the signal in whose ZenML handler the error was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is SignalHandler._handle.__code__:
            return int(frame.f_locals["signum"])
    return None
