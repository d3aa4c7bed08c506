"""What a person sees of `gauntlet run --all`: a bar with a line a lane on a terminal, else a line a model; a table."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flows.console import err, number, out, print_json, table
from models.errors import bounded

STYLES = {"promoted": "green", "kept": "cyan", "rejected": "red", "pending": "yellow"}


class Watch:
    """Follows the models as they go by."""

    def __init__(self, total: int, bar: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._bar = bar
        self._overall = bar.add_task("models", total=total, step="") if bar else TaskID(0)
        self._lanes: dict[int, TaskID] = {}
        self._guard = threading.Lock()

    def step(self, lane: int, model: str, step: str) -> None:
        """A lane is at a step of a model; no step yet is an empty one."""
        with self._guard:
            if self._bar is None:
                return
            if lane not in self._lanes:
                self._lanes[lane] = self._bar.add_task("", total=None)
            self._bar.update(self._lanes[lane], description=escape(f"  {model}"), step=step or "…")

    def finished(self, result: Mapping[str, Any]) -> None:
        """A model is done, well or not."""
        with self._guard:
            self._done += 1
            said = result["error"] or f"{result['verdict']} (v{result['version']})"
            style = "red" if result["error"] else STYLES.get(result["verdict"], "")
            line = bounded(f"{result['model']}: {' '.join(said.split())}", 300)
            console = self._bar.console if self._bar else err
            count = f"[dim]{self._done:>4} of {self._total}[/dim]"
            console.print(f"{count}  [{style}]{escape(line)}[/{style}]  {result['seconds']:.1f} s")
            if self._bar:
                self._bar.update(self._overall, completed=self._done)


@contextmanager
def watching(total: int) -> Iterator[Watch]:
    """Show the models of one run as they go by, on stderr."""
    if not err.is_terminal:
        yield Watch(total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield Watch(total, bar)


def print_report(report: Mapping[str, Any], as_json: bool) -> None:
    """Print what became of every model."""
    if as_json:
        print_json(report)
        return
    rows = [
        (
            result["model"],
            "failed" if result["error"] else result["verdict"],
            f"v{result['version']}" if result["version"] else "",
            result["metric"],
            number(result["score"]),
            f"{result['seconds']:.1f}",
            bounded(" ".join((result["error"] or "").split()), 200),
        )
        for result in report["results"]
    ]
    table("Models", ("model", "verdict", "version", "metric", "score", "seconds", "error"), rows)
    counts = ", ".join(f"{report[key]} {key}" for key in (*STYLES, "failed") if report[key])
    out.print(f"{report['models']} models: {counts}; {report['seconds']:.0f} s, {report['lanes']} at a time")
