"""Outcomes: what turned out to be true of a prediction, told once, twice, or in two ways.

The first outcome of a prediction stays whatever is said later. The same one again changes nothing. Another one is a
contradiction: it is kept beside the first, in the order of arrival, and every report about that prediction says so.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

import sqlalchemy as sa
from pydantic import AfterValidator, AllowInfNan, AwareDatetime, Field, RootModel, Strict, StringConstraints

from bentos.messages import FIRST_YEAR, LAST_YEAR, Message, bearable
from bentos.prediction_log import first_id
from bentos.predictions import OUTCOMES, limited, models_of
from stacks.ledger import Ledger

MOST_ITEMS: Final = 10_000
MOST_NAMED: Final = 100
PATIENCE: Final = 5.0  # seconds: whoever tells them waits, and the service has few threads for it
_AT_ONCE: Final = 500

Value = str | float | bool


class OutcomeItem(Message):
    """The outcome of one prediction."""

    prediction_id: Annotated[str, StringConstraints(min_length=1, max_length=48)]
    outcome: (
        Annotated[bool, Strict()]
        | Annotated[float, Strict(), AllowInfNan(False)]
        | Annotated[str, Strict(), StringConstraints(min_length=1, max_length=200)]
    )
    at: Annotated[AwareDatetime, AfterValidator(bearable)] | None = Field(
        None, description=f"When it was known: ISO 8601 with zone, in the years {FIRST_YEAR} to {LAST_YEAR}."
    )


class OutcomesRequest(RootModel[Annotated[list[OutcomeItem], Field(min_length=1, max_length=MOST_ITEMS)]]):
    """The body of `POST /outcomes`."""


class Report(Message):
    """What became of some outcomes; of each kind of id at most 100 are named, and all are counted."""

    recorded: int = Field(description="Outcomes that are new.")
    repeated: int = Field(description="Outcomes that were known already.")
    contradicted: int = Field(description="Predictions of this request that have more than one outcome by now.")
    unknown: int = Field(description="Ids that are not in the prediction log; nothing is stored of them.")
    unacceptable: int = Field(description="Outcomes that the prediction's model cannot have; not stored.")
    contradicted_ids: list[str]
    unknown_ids: list[str]
    unacceptable_ids: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome of one prediction.

    Attributes:
        prediction_id: Of which prediction.
        model: Which model predicted.
        outcome: What was true.
        at: When that was known, where it was said; UTC.
        received: When the service was told; UTC.
    """

    prediction_id: str
    model: str
    outcome: Value
    at: datetime | None
    received: datetime


def record(
    url: str,
    items: Sequence[OutcomeItem],
    received: float,
    acceptable: Callable[[str, Value], bool] | None = None,
) -> Report:
    """Store outcomes in one transaction; durable when this returns, and the same when done again.

    Args:
        url: As `stacks.ledger.Ledger` takes it.
        items: What is told.
        received: When, in seconds since 1970.
        acceptable: Whether a model (by name) can have an outcome; any may when left out.

    Raises:
        WorkError: The database cannot be used.
    """
    with Ledger(url, patience=PATIENCE).writing() as connection:
        models = models_of(connection, (item.prediction_id for item in items))
        known = _known(connection, sorted(models))
        tally: Counter[str] = Counter()
        unknown: dict[str, None] = {}
        unacceptable: dict[str, None] = {}
        rows = []
        for item in items:
            identity, text = item.prediction_id, _text(item.outcome)
            if identity not in models:
                unknown[identity] = None
            elif acceptable and not acceptable(models[identity], item.outcome):
                tally["unacceptable"] += 1
                unacceptable[identity] = None
            elif text in known.setdefault(identity, {}):
                tally["repeated"] += 1
            else:
                known[identity][text] = None
                at = item.at.timestamp() if item.at else None
                rows.append((identity, models[identity], text, at, received))
        if rows:
            names = ("prediction_id", "model", "outcome", "at", "received")
            connection.execute(sa.insert(OUTCOMES), [dict(zip(names, row, strict=True)) for row in rows])
    told = dict.fromkeys(item.prediction_id for item in items)
    contradicted = [identity for identity in told if len(known.get(identity, ())) > 1]
    return Report(
        recorded=len(rows),
        repeated=tally["repeated"],
        contradicted=len(contradicted),
        unknown=len(unknown),
        unacceptable=tally["unacceptable"],
        contradicted_ids=contradicted[:MOST_NAMED],
        unknown_ids=list(unknown)[:MOST_NAMED],
        unacceptable_ids=list(unacceptable)[:MOST_NAMED],
    )


def read_outcomes(url: str, model: str, since: datetime, until: datetime) -> Iterator[Outcome]:
    """Outcomes of a model's predictions made from `since` to `until`, to the millisecond; a prediction's in order.

    Raises:
        WorkError: The database cannot be used.
    """
    table, during = OUTCOMES, (first_id(since.timestamp()), first_id(until.timestamp()))
    query = sa.select(table).where(
        table.c.model == model, table.c.prediction_id >= during[0], table.c.prediction_id < during[1]
    )
    with Ledger(url).reading() as connection:
        ordered = query.order_by(table.c.prediction_id, table.c.sequence).execution_options(yield_per=_AT_ONCE)
        for row in connection.execute(ordered):
            at = None if row.at is None else _moment(row.at)
            received = datetime.fromtimestamp(row.received, UTC)
            yield Outcome(row.prediction_id, row.model, json.loads(row.outcome), at, received)


def count_received(ledger: Ledger, model: str, since: datetime, until: datetime) -> int:
    """How many outcomes of a model were received from `since` (included) to `until` (not); the database counts.

    Raises:
        WorkError: The database cannot be used, or would count for longer than 10 s.
    """
    during = OUTCOMES.c.received >= since.timestamp(), OUTCOMES.c.received < until.timestamp()
    query = sa.select(sa.func.count()).select_from(OUTCOMES).where(OUTCOMES.c.model == model, *during)
    with ledger.peeking() as connection:
        if connection is None or not sa.inspect(connection).has_table(OUTCOMES.name):
            return 0
        with limited(connection):
            return connection.scalar(query) or 0


def _moment(seconds: float) -> datetime | None:
    """None for what no calendar holds, as it was accepted once: one such row must not stop who reads the others."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _known(connection: sa.Connection, ids: Sequence[str]) -> dict[str, dict[str, None]]:
    """The outcomes on record of each id, in order."""
    known: dict[str, dict[str, None]] = {}
    for start in range(0, len(ids), _AT_ONCE):
        chosen = OUTCOMES.c.prediction_id.in_(ids[start : start + _AT_ONCE])
        query = sa.select(OUTCOMES.c.prediction_id, OUTCOMES.c.outcome).where(chosen).order_by(OUTCOMES.c.sequence)
        for identity, text in connection.execute(query):
            known.setdefault(identity, {})[text] = None
    return known


def _text(value: Value) -> str:
    """An outcome as it is stored and compared: JSON, where 1 and 1.0 are the same, true and "1" something else."""
    is_integral = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return json.dumps(int(value) if is_integral else value, ensure_ascii=False)
