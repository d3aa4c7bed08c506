"""Windows: what a model answered in a span of time, as a typed frame with scores, classes and times."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        bad: Shape (n,): how many of a row's cells are not what their column's type says; they count as missing.
        unread: By column, shape (n,) of bool: rows of versions that do not read it. They say nothing of the column.
        later: Answers that are dated in the future: the clock that dated them ran ahead.
    """

    since: datetime
    until: datetime
    inputs: pd.DataFrame = field(repr=False)
    ids: _Array = field(repr=False)
    at: _Array = field(repr=False)
    versions: _Array = field(repr=False)
    scores: _Array = field(repr=False)
    bad: _Array = field(repr=False)
    unread: Mapping[str, _Array] = field(default_factory=dict, repr=False)
    later: int = 0

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.ids)

    @property
    def widened(self) -> int:
        """How many of the rows are from before `since`, because there were too few."""
        return int(np.sum(self.at < _moment(self.since)))

    @property
    def untyped(self) -> int:
        """Cells that are not what their column's type says."""
        return int(self.bad.sum())

    @property
    def begin(self) -> datetime:
        """When the first of the rows was answered, where the window was widened; else `since`."""
        return _utc(self.at[0]) if self.widened else self.since

    def take(self, rows: _Array | slice) -> "Window":
        """The window with some of its rows, by position."""
        unread = {name: mask[rows] for name, mask in self.unread.items() if mask[rows].any()}
        parts = {name: getattr(self, name)[rows] for name in ("ids", "at", "versions", "scores", "bad")}
        return replace(self, inputs=self.inputs.iloc[rows].reset_index(drop=True), unread=unread, **parts)

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
        for name, mask in self.unread.items():
            told.append(f"{int(mask.sum()):,} of {self.rows:,} rows are of versions that do not read {name}")
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
    url: str,
    schema: Schema,
    now: datetime,
    length: timedelta,
    least: int = 500,
    longest: timedelta = LONGEST,
    version: int | None = None,
) -> Window:
    """Read the window of `length` that ends at `now`; where it has fewer than `least` rows, the newest `least`.

    Args:
        url: As `stacks.ledger.Ledger` takes it.
        schema: The champion's.
        now: Its end, with a time zone.
        length: How long it is.
        least: Rows to have.
        longest: How far it may be widened backwards; fewer rows than `least` are then all there are.
        version: The champion, which reads all columns of `schema`; what no row of another version has that one does
            not read. Without it all are taken to read them all.

    Raises:
        ValueError: `now` has no time zone, or a length is not positive.
        WorkError: The database cannot be used.
    """
    if now.tzinfo is None or length <= timedelta(0):
        raise ValueError("a window ends at a moment with a time zone and has a positive length")
    until = now.astimezone(UTC)
    since, span = until - length, length
    found = _read(url, schema, since, until, version)
    while found.rows < least and span < longest:
        span = min(span * 4, longest)
        found = _read(url, schema, until - span, until, version)
    later = predictions.count(url, schema.model, max(until, present()), _EVER, without=SHADOW)
    whole = replace(found, since=since, later=later)
    kept = max(whole.rows - whole.widened, min(least, whole.rows))
    return whole.take(slice(whole.rows - kept, None))


def read_labels(url: str, schema: Schema, window: Window, now: datetime) -> Labelled:
    """The outcomes that were known at `now` of a window's rows, however late they came.

    Raises:
        WorkError: The database cannot be used.
    """
    if not window.rows:
        return join(schema, window, (), now)
    return join(schema, window, read_outcomes(url, schema.model, _utc(window.at[0]), window.until), now)


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


def _utc(at: Any) -> datetime:
    moment: datetime = at.astype("datetime64[ms]").item()
    return moment.replace(tzinfo=UTC)


def _read(url: str, schema: Schema, since: datetime, until: datetime, version: int | None) -> Window:
    """What is in the log, a chunk at a time: a typed row takes a tenth of a logged one."""
    parts: list[pd.DataFrame] = []
    bad: list[_Array] = []
    present: dict[int, set[str]] = {}
    columns: dict[str, list[Any]] = {"ids": [], "at": [], "versions": [], "scores": []}
    answered = (p for p in predictions.read(url, schema.model, since, until) if p.variant != SHADOW)
    while chunk := list(islice(answered, _CHUNK)):
        typed = typed_rows([[p.inputs.get(name) for name in schema.inputs] for p in chunk], schema.inputs)
        for p in chunk:
            present.setdefault(p.version, set()).update(p.inputs)
        parts.append(typed.frame)
        cells = [row for problem in typed.problems for row in problem.rows]
        bad.append(np.bincount(np.array(cells, dtype=np.int64), minlength=len(chunk)))
        columns["ids"] += [p.id for p in chunk]
        columns["at"] += [_moment(p.at) for p in chunk]
        columns["versions"] += [p.version for p in chunk]
        columns["scores"] += [_score(schema, p) for p in chunk]
    frame = pd.concat(parts, ignore_index=True) if parts else typed_rows([], schema.inputs).frame
    versions = np.array(columns["versions"], dtype=np.int64)
    unread = _unread(schema, versions, present, version)
    seen = set().union(*present.values(), (name for name, mask in unread.items() if mask.all()))
    kept = [name for name in frame.columns if not parts or name in seen]
    shape = (-1, len(schema.labels)) if schema.labels else (-1,)
    return Window(
        since=since,
        until=until,
        inputs=frame[kept],
        ids=np.array(columns["ids"], dtype=object),
        at=np.array(columns["at"], dtype="datetime64[ms]"),
        versions=versions,
        scores=np.array(columns["scores"], dtype=np.float64).reshape(shape),
        bad=np.concatenate([np.zeros(0, dtype=np.int64), *bad]),
        unread={name: mask for name, mask in unread.items() if name in kept},
    )


def _unread(
    schema: Schema, versions: _Array, present: Mapping[int, set[str]], version: int | None
) -> dict[str, _Array]:
    """By column the rows of versions that do not read it."""
    if version is None:
        return {}
    without = {name: [v for v, has in present.items() if v != version and name not in has] for name in schema.inputs}
    return {name: np.isin(versions, others) for name, others in without.items() if others}


def _score(schema: Schema, prediction: Prediction) -> Any:
    answer = prediction.answer
    if not schema.labels:
        value = answer.get("prediction")
        return float(value) if isinstance(value, int | float) else np.nan
    shares = answer.get("probabilities") or {}
    return [shares.get(label, np.nan) for label in schema.labels]
