"""What a person sees of a run: progress and messages on stderr, tables on stdout."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.config import Logging
from models.errors import bounded
from stacks import logs
from stacks.active import use_stack
from stacks.home import use_home
from stacks.logs import ENGINES, OURS, masked
from stacks.terminal import terminal

STARTED = re.compile(r"Step `(.+)` has started\.")
FINISHED = re.compile(r"Step `(.+)` has finished in `(.+)`\.")
CACHED = re.compile(r"Using cached version of step `(.+)`\.")
FAILED = re.compile(r"Failed to run step `(.+?)`")

# A file or a pipe has no width of its own: a table's reasons need more than the 80 columns that Rich would take.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
err = terminal()


class RunHandler(logging.Handler):
    """Shows a run on stderr, a line a step: as they start and end, our own messages, other libraries' warnings.

    What ZenML and Prefect say of a failure is left to their own records: the command ends with the reason, once.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.started: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or nothing where it is another library's chatter."""
        try:
            message = masked(record.getMessage())
            room = record.name.split(".")[0]
            step = room == "zenml" and any(form.search(message) for form in (STARTED, FINISHED, CACHED, FAILED))
            loud = room not in ENGINES and record.levelno >= logging.WARNING
            if not (step or loud or room in OURS or self.level <= logging.DEBUG):
                return
            if err.is_terminal:
                err.file.write("\r\x1b[2K")
            if step:
                self._write_step(message)
            else:
                style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno > 20 else ""
                err.print(escape(f"  {bounded(message)}"), style=style)
        except Exception:
            self.handleError(record)

    def _write_step(self, message: str) -> None:
        if match := STARTED.search(message):
            self.started[match[1]] = time.monotonic()
            if err.is_terminal:
                err.print(f"  [dim]· {match[1]}[/dim]", end="\r")
        elif match := FINISHED.search(message):
            seconds = time.monotonic() - self.started.pop(match[1], time.monotonic())
            err.print(f"  [green]✓[/green] {match[1]:<10} {seconds:6.1f} s")
        elif match := CACHED.search(message):
            err.print(f"  [green]✓[/green] {match[1]:<10} [dim]cached[/dim]")
        elif match := FAILED.search(message):
            err.print(f"  [red]✗[/red] {match[1]}")


def quiet_tools() -> Path:
    """The tools' homes, for a command that is about no stack: ZenML then tells errors only."""
    os.environ.setdefault("ZENML_LOGGING_VERBOSITY", "ERROR")
    return use_home()


def quiet_home() -> Path:
    """The tools' homes and what the active stack carries, for a command that runs nothing."""
    home = quiet_tools()
    use_stack()
    return home


def use_logging(wanted: Logging, **ids: str) -> None:
    """Replace the console handlers of ZenML and Prefect by ours; their stored logs stay as they are.

    Import zenml and prefect first: each installs its console handler when imported. For JSON call it before that too,
    or what the imports say is text.

    Args:
        wanted: Level and form.
        ids: What every JSON record carries, for example the model and the run.
    """
    level = logging.getLevelNamesMapping()[wanted.level]
    if speaks(wanted) == "json":
        logs.speak_json(level, **ids)
        return
    logs.speak_text()
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler).__name__ in ("ZenMLConsoleHandler", "PrefectConsoleHandler", "RunHandler"):
            root.removeHandler(handler)
    root.addHandler(RunHandler(level))
    root.setLevel(min(logging.INFO, level))
    logging.captureWarnings(False)


def speaks(wanted: Logging) -> str:
    """The form of a run's messages: the YAML's, unless `GAUNTLET_LOG_FORMAT` asks every process for JSON."""
    return "json" if logs.wants_json() else wanted.format


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], whole: int = 0) -> None:
    """Print rows as a table on stdout; the first `whole` columns are never folded."""
    view = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
    for place, column in enumerate(columns):
        view.add_column(column, overflow="fold", no_wrap=place < whole)
    for row in rows:
        view.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    out.print(view)


def number(value: object) -> str:
    """A number as a person reads it: four decimals at most, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def span(seconds: float) -> str:
    """A span of time as a person says it: `40 s`, `5 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object as the last line of stdout."""
    sys.stdout.flush()
    sys.stdout.write(json.dumps(result, ensure_ascii=False, default=str) + "\n")
