"""What a user is told when something cannot be done, and the exit code that goes with it."""

import difflib
import re
from collections.abc import Sequence
from typing import ClassVar

LIMIT = 2_000


def bounded(text: str, limit: int = LIMIT) -> str:
    """Cut `text` to at most `limit` characters, saying how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 40]} … ({len(text) - limit + 40} more characters)"


def guess(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown `name`: the closest one there is, and the first twenty of all."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    shown = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
    return f"{hint} (there is: {shown or 'nothing'})"


def shown(path: str) -> str:
    """A path or URL as it may be printed: without user, password and query, bounded."""
    if "://" in path:
        path = re.sub(r"//[^/@]*@", "//", path).partition("?")[0]
    return path if len(path) <= 200 else f"…{path[-199:]}"


class GauntletError(Exception):
    """Says what failed, what exists and what to do, in bounded text without personal values."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


class DataError(GauntletError):
    """The data cannot be used as the model's YAML describes them."""


class WorkError(GauntletError):
    """A step of the work failed for a reason outside the data."""


class ConfigError(GauntletError):
    """The command, a model YAML or a stack file is wrong; nothing was started."""

    exit_code: ClassVar[int] = 2
