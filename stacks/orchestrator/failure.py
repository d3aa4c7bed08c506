"""A failure on its way from one process to another: described in plain values, never pickled."""

import sys
import traceback
from typing import Any

LONGEST = 100_000
DEEPEST = 8
PLAIN = (str, int, float, bool, type(None))


class StepFailed(RuntimeError):
    """A step's process failed, in a way that has no exception of its own here."""


def described(error: BaseException, depth: int = DEEPEST) -> dict[str, Any]:
    """What can be told of an exception and of those that led to it, in values that JSON has."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    plain = all(isinstance(argument, PLAIN) and len(str(argument)) < LONGEST for argument in error.args)
    return {
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "message": _message(error)[:LONGEST],
        "arguments": [*error.args] if plain else None,
        # The first one's tells of all.
        "traceback": "".join(traceback.format_exception(error))[-LONGEST:] if depth == DEEPEST else "",
        "before": described(before, depth - 1) if before and depth else None,
    }


def rebuilt(description: dict[str, Any]) -> BaseException:
    """The exception again, of its own class where that is loaded here, else a `StepFailed`; nothing is imported.

    The traceback of the other process is a note of it, and the exceptions that led to it are its causes.
    """
    error = _of_its_class(description) or StepFailed(f"{description['name']}: {description['message']}")
    earlier = description["before"]
    while earlier:
        # All are in the first one's traceback; the chain is there for whoever looks for a class of exception in it.
        cause = _of_its_class(earlier) or StepFailed(f"{earlier['name']}: {earlier['message']}")
        _last(error).__cause__ = cause
        earlier = earlier["before"]
    error.add_note(f"In the step's own process:\n{description['traceback'].rstrip()}")
    return error


def _of_its_class(description: dict[str, Any]) -> BaseException | None:
    found: Any = sys.modules.get(description["module"])
    for name in description["name"].split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        return None
    for make in (_from_arguments, _from_message):
        try:
            error: BaseException = make(found, description)
            if type(error) is found and _message(error)[:LONGEST] == description["message"]:
                return error
        except Exception:
            continue
    return None


def _from_arguments(kind: type[BaseException], description: dict[str, Any]) -> BaseException:
    if description["arguments"] is None:
        raise TypeError("arguments that are no plain values stay where they are")
    return kind(*description["arguments"])


def _from_message(kind: type[BaseException], description: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, description["message"])
    BaseException.__init__(error, description["message"])
    return error


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(it has no text)"


def _last(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
