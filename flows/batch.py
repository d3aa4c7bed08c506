"""`gauntlet predict` and `gauntlet outcomes`: tables scored by the champion, late labels; progress and what is said."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flows.console import err, out, print_json, quiet_home
from models.config import load_model
from models.errors import ConfigError

AFTER_SECONDS: Final = 2.0
NAMED: Final = 5


def predict_table(order: dict[str, Any], on_bad_row: str, force: bool, as_json: bool) -> None:
    """Answer all rows of a table with the champion, and say what became of them.

    Raises:
        GauntletError: See `steps.batch.predict`.
    """
    if on_bad_row not in ("stop", "skip"):
        raise ConfigError(f"--on-bad-row is stop or skip, not '{on_bad_row[:40]}'")
    load_model(order["model"])
    quiet_home()
    from steps.batch import predict
    from steps.resume import Order

    with _progress("rows answered", as_json) as tell:
        done = predict(Order(**order), "skip" if on_bad_row == "skip" else "stop", force, tell)
    if as_json:
        print_json(done.model_dump())
        return
    if done.repeated:
        out.print(
            f"{done.output} is complete: the same rows were answered before, nothing was left to do", markup=False
        )
    else:
        rate = f"{done.seconds:.1f} s, {done.rows_per_second:,} rows a second"
        out.print(f"{done.model} v{done.version} answered {done.rows:,} rows: {done.output} ({rate})", markup=False)
    if done.resumed and not done.repeated:
        out.print(f"{done.resumed:,} chunks of them were there from an earlier attempt")
    if done.bad_rows:
        err.print(escape(f"bad rows left out: {done.bad_rows:,}; {done.report} names them"), style="yellow")
    if done.lost:
        err.print(f"{done.lost:,} rows are not in the prediction log: it could not be written", style="yellow")


def tell_outcomes(model: str, address: str, separator: str, as_json: bool) -> None:
    """Store the outcomes of a file, and say what became of them.

    Raises:
        GauntletError: See `steps.outcomes.tell_outcomes`.
    """
    load_model(model)
    quiet_home()
    from steps.outcomes import REFUSED
    from steps.outcomes import tell_outcomes as tell_all
    from steps.table import Table

    with _progress("outcomes read", as_json) as tell:
        told = tell_all(model, Table.of(address, None, separator), tell)
    if as_json:
        print_json(told.model_dump())
        return
    out.print(f"{told.rows:,} outcomes: {told.recorded:,} recorded, {told.repeated:,} known already")
    for kind in ("contradicted", *REFUSED):
        if count := getattr(told, kind):
            some = ", ".join(told.named.get(kind, ())[:NAMED])
            err.print(
                escape(f"{count:,} {kind}{f': {some}' if some else ''}{', …' if count > NAMED else ''}"), style="yellow"
            )


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A line on stderr that counts, once two seconds have passed."""
    begun = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=err, transient=True, disable=quiet)
    task = progress.add_task(what, total=None)

    def tell(rows: int) -> None:
        progress.advance(task, rows)
        if time.monotonic() - begun > AFTER_SECONDS:
            progress.start()

    try:
        yield tell
    finally:
        progress.stop()
