"""Windows: what a model answered in a span of time, as a typed frame with scores, classes and times."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from bentos import predictions
from bentos.inputs import typed_rows
from bentos.outcomes import Outcome, read_outcomes
from bentos.predictions import Prediction
from bentos.schema import Schema
from stacks.findings import present

LONGEST = timedelta(days=366)
SHADOW = "shadow"
_CHUNK = 20_000
_EVER = datetime(9999, 1, 1, tzinfo=UTC)
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """What a model answered in a span of time, by time; answers of a shadow are left out.

    Attributes:
        since: Begin of the span that was asked for, UTC.
        until: Its end, which is not part of it.
        inputs: The n rows, typed; a column that no row has is not in it.
        ids: Shape (n,): prediction ids.
        at: Shape (n,) of datetime64[ms]: when they were answered, UTC.
        versions: Shape (n,): which version answered.
        scores: Shape (n, k), probabilities in the order of the schema's labels, or (n,), numbers; NaN where an answer
            has none, as those of a version with other labels.
        widened: How many of the rows are from before `since`, because there were too few.
        untyped: Cells that are not what their column's type says; they count as missing.
        later: Answers that are dated in the future: the clock that dated them ran ahead.
    """

    since: datetime
    until: datetime
    inputs: pd.DataFrame = field(repr=False)
    ids: _Array = field(repr=False)
    at: _Array = field(repr=False)
    versions: _Array = field(repr=False)
    scores: _Array = field(repr=False)
    widened: int = 0
    untyped: int = 0
    later: int = 0

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.ids)

    def of_version(self, version: int) -> "_Array":
        """Positions of the rows that a version answered and whose scores are whole."""
        whole = np.isfinite(self.scores) if self.scores.ndim == 1 else np.isfinite(self.scores).all(axis=1)
        return np.flatnonzero((self.versions == version) & whole)

    def notes(self) -> tuple[str, ...]:
        """What a reader of any figure has to know."""
        told = []
        if not self.rows:
            told.append("nothing was answered")
        if self.widened:
            told.append(f"{self.widened:,} of {self.rows:,} rows are older: the window was widened")
        if self.untyped:
            told.append(f"{self.untyped:,} cells are not of their column's type")
        if self.later:
            told.append(f"{self.later:,} answers are dated in the future; was a clock set back?")
        return tuple(told)


@dataclass(frozen=True)
class Labelled:
    """Those of a window's rows whose outcome is known: n of them.

    Attributes:
        rows: Shape (n,): positions in the window, rising.
        truth: Shape (n,): labels (object), or numbers.
        contradicted: How many have more than one outcome; the first one counts.
        later: Outcomes that are dated, or came, after the moment of looking; not used.
        unfit: Outcomes that the model cannot have; not used.
    """

    rows: _Array = field(repr=False)
    truth: _Array = field(repr=False)
    contradicted: int = 0
    later: int = 0
    unfit: int = 0


def read_window(
    url: str, schema: Schema, now: datetime, length: timedelta, least: int = 500, longest: timedelta = LONGEST
) -> Window:
    """Read the window of `length` that ends at `now`; where it has fewer than `least` rows, the newest `least`.

    Args:
        url: As `stacks.ledger.Ledger` takes it.
        schema: The champion's.
        now: Its end, with a time zone.
        length: How long it is.
        least: Rows to have.
        longest: How far it may be widened backwards; fewer rows than `least` are then all there are.

    Raises:
        ValueError: `now` has no time zone, or a length is not positive.
        WorkError: The database cannot be used.
    """
    if now.tzinfo is None or length <= timedelta(0):
        raise ValueError("a window ends at a moment with a time zone and has a positive length")
    until = now.astimezone(UTC)
    since, span = until - length, length
    found = _read(url, schema, since, until)
    while found.rows < least and span < longest:
        span = min(span * 4, longest)
        found = _read(url, schema, until - span, until)
    later = predictions.count(url, schema.model, max(until, present()), _EVER)
    inside = int(np.sum(found.at >= _moment(since)))
    kept = max(inside, min(least, found.rows))
    return Window(
        since=since,
        until=until,
        inputs=found.inputs.iloc[found.rows - kept :].reset_index(drop=True),
        ids=found.ids[found.rows - kept :],
        at=found.at[found.rows - kept :],
        versions=found.versions[found.rows - kept :],
        scores=found.scores[found.rows - kept :],
        widened=kept - inside,
        untyped=found.untyped,
        later=later,
    )


def read_labels(url: str, schema: Schema, window: Window, now: datetime) -> Labelled:
    """The outcomes that were known at `now` of a window's rows, however late they came.

    Raises:
        WorkError: The database cannot be used.
    """
    if not window.rows:
        return join(schema, window, (), now)
    first = window.at[0].astype("datetime64[ms]").item().replace(tzinfo=UTC)
    return join(schema, window, read_outcomes(url, schema.model, first, window.until), now)


def join(schema: Schema, window: Window, outcomes: Sequence[Outcome] | Iterator[Outcome], now: datetime) -> Labelled:
    """Join outcomes to a window's rows by prediction id; a prediction's first outcome counts."""
    first: dict[str, Any] = {}
    contradicted: set[str] = set()
    later = unfit = 0
    for outcome in outcomes:
        if outcome.received > now or (outcome.at is not None and outcome.at > now):
            later += 1
        elif not _fits(schema, outcome.outcome):
            unfit += 1
        elif outcome.prediction_id in first:
            contradicted.add(outcome.prediction_id)
        else:
            first[outcome.prediction_id] = outcome.outcome
    rows = [row for row, identity in enumerate(window.ids.tolist()) if identity in first]
    known = [first[window.ids[row]] for row in rows]
    kind = object if schema.labels else np.float64
    doubtful = len(contradicted.intersection(window.ids.tolist()))
    return Labelled(np.array(rows, dtype=np.int64), np.array(known, dtype=kind), doubtful, later, unfit)


def _fits(schema: Schema, outcome: Any) -> bool:
    if schema.labels:
        return outcome in schema.labels
    return isinstance(outcome, int | float) and not isinstance(outcome, bool)


def _moment(at: datetime) -> Any:
    return np.datetime64(at.astimezone(UTC).replace(tzinfo=None), "ms")


def _read(url: str, schema: Schema, since: datetime, until: datetime) -> Window:
    """What is in the log, a chunk at a time: a typed row takes a tenth of a logged one."""
    parts: list[pd.DataFrame] = []
    present: set[str] = set()
    columns: dict[str, list[Any]] = {"ids": [], "at": [], "versions": [], "scores": []}
    untyped = 0
    answered = (p for p in predictions.read(url, schema.model, since, until) if p.variant != SHADOW)
    while chunk := list(islice(answered, _CHUNK)):
        typed = typed_rows([[p.inputs.get(name) for name in schema.inputs] for p in chunk], schema.inputs)
        present.update(*(p.inputs for p in chunk))
        parts.append(typed.frame)
        untyped += sum(problem.count for problem in typed.problems)
        columns["ids"] += [p.id for p in chunk]
        columns["at"] += [_moment(p.at) for p in chunk]
        columns["versions"] += [p.version for p in chunk]
        columns["scores"] += [_score(schema, p) for p in chunk]
    frame = pd.concat(parts, ignore_index=True) if parts else typed_rows([], schema.inputs).frame
    kept = [name for name in frame.columns if not parts or name in present]
    shape = (-1, len(schema.labels)) if schema.labels else (-1,)
    return Window(
        since=since,
        until=until,
        inputs=frame[kept],
        ids=np.array(columns["ids"], dtype=object),
        at=np.array(columns["at"], dtype="datetime64[ms]"),
        versions=np.array(columns["versions"], dtype=np.int64),
        scores=np.array(columns["scores"], dtype=np.float64).reshape(shape),
        untyped=untyped,
    )


def _score(schema: Schema, prediction: Prediction) -> Any:
    answer = prediction.answer
    if not schema.labels:
        value = answer.get("prediction")
        return float(value) if isinstance(value, int | float) else np.nan
    shares = answer.get("probabilities") or {}
    return [shares.get(label, np.nan) for label in schema.labels]
