"""Late labels: what turned out to be true of predictions, from a table to the prediction log."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pandas as pd

from bentos.fetch import fetch
from bentos.frame import canonical_text
from bentos.outcomes import MOST_ITEMS, MOST_NAMED, OutcomeItem, Report, Value, record
from bentos.schema import Schema
from models.errors import DataError, WorkError
from models.section import Section
from stacks.handover import reign_of
from stacks.home import home_dir
from stacks.ledger import database_url, open_ledger
from steps.read import require_columns
from steps.table import Table

AHEAD: Final = timedelta(minutes=5)
COLUMNS: Final = ("prediction_id", "outcome", "at")
REFUSED: Final = ("unknown", "unacceptable", "future", "untimed")
KINDS: Final = ("recorded", "repeated", "contradicted", *REFUSED)
LONGEST_ID: Final = 48
LONGEST_TEXT: Final = 200


class Told(Section):
    """What became of the outcomes of a table; of each kind at most 100 ids are named, and all are counted.

    Attributes:
        model: Name of the model.
        rows: Rows that were read.
        recorded: Outcomes that are new.
        repeated: Outcomes that were known already.
        contradicted: Predictions that have more than one outcome by now, counted once for each 10,000 rows they are in.
        unknown: Rows whose id is not in the prediction log.
        unacceptable: Outcomes that the model cannot have, or of another model's predictions.
        future: Outcomes that would be known only more than five minutes from now.
        untimed: Rows whose `at` is no time with a zone.
        named: Ids by kind.
        seconds: How long it took.
    """

    model: str
    rows: int
    recorded: int
    repeated: int
    contradicted: int
    unknown: int
    unacceptable: int
    future: int
    untimed: int
    named: dict[str, tuple[str, ...]]
    seconds: float

    @property
    def refused(self) -> int:
        """Rows of which nothing is stored."""
        return sum(getattr(self, kind) for kind in REFUSED)


def tell_outcomes(model: str, table: Table, tell: Callable[[int], None] = lambda _: None) -> Told:
    """Store the outcomes of a table with the columns `prediction_id`, `outcome` and, if there, `at`.

    An `at` is a time with its zone: ISO 8601 as text. Done again, nothing changes.

    Args:
        model: Name of the model; outcomes of another one's predictions are not taken.
        table: What is read.
        tell: Told how many rows were read since.

    Raises:
        DataError: The table cannot be read, or none of its rows can be taken.
        WorkError: The model has no champion whose answers say what an outcome may be; the database cannot be used.
    """
    begun, now = time.monotonic(), datetime.now(UTC)
    names = table.names()
    require_columns(names, COLUMNS[:2], table.where, first_line=False)
    schema, labels = _champion(model)
    reader = _Reader(schema, labels, now, Counter(), {})

    def acceptable(owner: str, value: Value) -> bool:
        return owner == model and (value in schema.labels if schema.labels else isinstance(value, float))

    for chunk in table.chunks([name for name in COLUMNS if name in names], (), MOST_ITEMS):
        if items := reader.items(chunk.frame):
            reader.note(record(database_url(), items, now.timestamp(), acceptable))
        tell(len(chunk.frame))
    counts = {kind: reader.tally[kind] for kind in ("rows", *KINDS)}
    told = Told(
        model=model,
        **counts,
        named={kind: tuple(ids) for kind, ids in reader.named.items() if ids},
        seconds=round(time.monotonic() - begun, 2),
    )
    if not told.recorded + told.repeated:
        said = ", ".join(f"{counts[kind]:,} {kind}" for kind in REFUSED if counts[kind])
        raise DataError(
            f"{table.where}: none of {told.rows:,} outcomes can be taken ({said}); are these ids of '{model}', "
            "and are the outcomes what it predicts?"
        )
    return told


@dataclass(frozen=True)
class _Reader:
    """Rows to outcomes, and what became of them.

    Attributes:
        schema: What the champion answers.
        labels: Class of a raw value, where the YAML maps them.
        now: What is later than five minutes after is refused.
        tally: Counts by kind.
        named: Some ids by kind.
    """

    schema: Schema
    labels: Mapping[str, str]
    now: datetime
    tally: Counter[str]
    named: dict[str, list[str]]

    def items(self, frame: pd.DataFrame) -> list[OutcomeItem]:
        """The outcomes that may be stored, if their ids are known."""
        self.tally["rows"] += len(frame)
        times = frame["at"] if "at" in frame else [None] * len(frame)
        found = []
        for cell, raw, when in zip(frame["prediction_id"], frame["outcome"], times, strict=True):
            identity = "" if pd.isna(cell) else str(cell).strip()
            value, at = self._value(raw), _time(when)
            if not 0 < len(identity) <= LONGEST_ID:
                self._refuse("unknown", "")
            elif value is None or (isinstance(value, str) and not 0 < len(value) <= LONGEST_TEXT):
                self._refuse("unacceptable", identity)
            elif at is None and not pd.isna(when):
                self._refuse("untimed", identity)
            elif at is not None and at > self.now + AHEAD:
                self._refuse("future", identity)
            else:
                found.append(OutcomeItem(prediction_id=identity, outcome=value, at=at))
        return found

    def note(self, report: Report) -> None:
        """Add up what became of some."""
        for kind in ("recorded", "repeated", "contradicted", "unknown", "unacceptable"):
            self.tally[kind] += getattr(report, kind)
        for kind in ("contradicted", "unknown", "unacceptable"):
            for identity in getattr(report, f"{kind}_ids"):
                self._name(kind, identity)

    def _value(self, raw: Any) -> Value | None:
        if pd.isna(raw):
            return None
        text = canonical_text(raw)
        if self.schema.labels:
            return text if text in self.schema.labels else self.labels.get(text, text)
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def _refuse(self, kind: str, identity: str) -> None:
        self.tally[kind] += 1
        self._name(kind, identity)

    def _name(self, kind: str, identity: str) -> None:
        known = self.named.setdefault(kind, [])
        if identity and len(known) < MOST_NAMED:
            known.append(identity)


def _champion(model: str) -> tuple[Schema, Mapping[str, str]]:
    """What the champion answers, and the class of each raw value of its target."""
    champion = reign_of(open_ledger().history(model)).champion
    if champion is None:
        raise WorkError(f"'{model}' has no champion, so nothing was predicted; train one: gauntlet run {model}")
    release = fetch(champion, home_dir() / "serving")
    return release.schema, release.config.target.map or {}


def _time(cell: Any) -> datetime | None:
    """A moment with its zone; None where the cell is none."""
    if isinstance(cell, str):
        try:
            cell = datetime.fromisoformat(cell.strip())
        except ValueError:
            return None
    if not isinstance(cell, datetime) or pd.isna(cell) or cell.tzinfo is None:
        return None
    return cell.to_pydatetime(warn=False) if isinstance(cell, pd.Timestamp) else cell
