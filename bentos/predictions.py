"""The prediction log's reading side, a batch as the rows that it is made of; and its retention."""

import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from bentos.prediction_log import COLUMNS, first_id, table_of
from stacks.ledger import Ledger

_ID: Final = re.compile(r"([0-9a-f]{32})(?:-(0|[1-9][0-9]{0,8}))?")
_TABLE: Final = re.compile(r"predictions_[0-9]{4}_[0-9]{2}")
_AT_ONCE: Final = 500
_STREAMED: Final = 20
MOST_SECONDS: Final = 10.0
_STEPS: Final = 100_000  # of SQLite's machine, a few milliseconds
OUTCOMES: Final = sa.Table(
    "outcomes",
    sa.MetaData(),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("prediction_id", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.Column("at", sa.Double),
    sa.Column("received", sa.Double),
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row that was answered.

    Attributes:
        id: Its prediction id.
        at: When it was answered, UTC.
        model: Name of the model.
        version: The version that answered.
        variant: As what it answered.
        entity: Keyed hash of whom it is about.
        trace: The request's OpenTelemetry trace.
        inputs: The row, by column.
        answer: What was said.
        true_at: When its values were true, as the request said it, ISO 8601.
    """

    id: str
    at: datetime
    model: str
    version: int
    variant: str
    entity: str | None
    trace: str | None
    inputs: dict[str, Any]
    answer: dict[str, Any]
    true_at: str | None = None


def read(url: str, model: str, since: datetime, until: datetime) -> Iterator[Prediction]:
    """A model's predictions from `since` (included) to `until` (not), by time; read as they are taken.

    Raises:
        WorkError: The database cannot be used.
    """
    with Ledger(url).peeking() as connection:
        for name in _tables(connection):
            if not table_of(first_id(since.timestamp())) <= name <= table_of(first_id(until.timestamp())):
                continue
            table = _table(name)
            query = sa.select(table).where(table.c.model == model, *_during(table, since, until))
            query = query.order_by(table.c.at, table.c.id).execution_options(yield_per=_STREAMED)
            for row in connection.execute(query):  # type: ignore[union-attr]
                yield from _expanded(row)


def count(url: str, model: str, since: datetime, until: datetime, without: str | None = None) -> int:
    """How many predictions `read` would give, but for those of one variant; none of them is read.

    Raises:
        WorkError: The database cannot be used.
    """
    total = 0
    with Ledger(url).peeking() as connection:
        for name in _tables(connection):
            table = _table(name)
            query = sa.select(sa.func.sum(sa.func.coalesce(table.c.rows, 1)))
            query = query.where(table.c.model == model, *_during(table, since, until))
            if without is not None:
                query = query.where(table.c.variant != without)
            total += connection.scalar(query) or 0  # type: ignore[union-attr]
    return total


@dataclass(frozen=True, slots=True)
class Answered:
    """How much a version answered.

    Attributes:
        version: The version.
        variant: As what it answered.
        answers: Requests; a batch is one.
        rows: Rows of all of them.
    """

    version: int
    variant: str
    answers: int
    rows: int


def answered(ledger: Ledger, model: str, since: datetime, until: datetime) -> tuple[Answered, ...]:
    """How much each version answered from `since` (included) to `until` (not); the database counts, nothing is read.

    Raises:
        WorkError: The database cannot be used, or would count for longer than 10 s.
    """
    total: Counter[tuple[int, str, str]] = Counter()
    with ledger.peeking() as connection, limited(connection):
        for name in _tables(connection):
            if not table_of(first_id(since.timestamp())) <= name <= table_of(first_id(until.timestamp())):
                continue
            table = _table(name)
            counts = sa.func.count(), sa.func.sum(sa.func.coalesce(table.c.rows, 1))
            query = sa.select(table.c.version, table.c.variant, *counts)
            query = query.where(table.c.model == model, *_during(table, since, until))
            for version, variant, answers, rows in connection.execute(  # type: ignore[union-attr]
                query.group_by(table.c.version, table.c.variant)
            ):
                total.update({(version, variant, "answers"): answers, (version, variant, "rows"): rows})
    served = sorted({(version, variant) for version, variant, _ in total})
    return tuple(Answered(*who, total[*who, "answers"], total[*who, "rows"]) for who in served)


@contextmanager
def limited(connection: sa.Connection | None, seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Have a connection's queries end with an error of the database after some seconds."""
    if connection is None or connection.dialect.name != "sqlite":
        if connection is not None:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(1000 * seconds)}")
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    deadline = time.monotonic() + seconds
    driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


def find(url: str, ids: Collection[str]) -> dict[str, Prediction]:
    """The predictions that have these ids, by id; one that is not in the log is left out.

    Raises:
        WorkError: The database cannot be used.
    """
    wanted = set(ids)
    with Ledger(url).peeking() as connection:
        rows = _records(connection, wanted, COLUMNS) if connection is not None else ()
        return {found.id: found for row in rows for found in _expanded(row) if found.id in wanted}


def models_of(connection: sa.Connection, ids: Iterable[str]) -> dict[str, str]:
    """The model of each id that is in the log."""
    wanted = set(ids)
    records = {row.id: row for row in _records(connection, wanted, ("id", "model", "rows"))}
    found = {}
    for identity in wanted:
        match = _ID.fullmatch(identity)
        record = records.get(match[1]) if match else None
        if match and record and (match[2] is None) == (record.rows is None) and int(match[2] or 0) < (record.rows or 1):
            found[identity] = record.model
    return found


def drop_expired(url: str, model: str, months: int, now: datetime | None = None) -> tuple[str, ...]:
    """Forget a model's predictions, and their outcomes, of all but the running month and the `months` before it.

    A month's table goes when the last model that has records in it forgets them.

    Args:
        url: As `stacks.ledger.Ledger` takes it.
        model: Name of the model.
        months: Whole months that are kept.
        now: The running month; today's when left out.

    Returns:
        The tables that went.

    Raises:
        WorkError: The database cannot be used.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    kept = first_id(datetime(year, month + 1, 1, tzinfo=UTC).timestamp())
    ledger, dropped = Ledger(url), []
    with ledger.reading() as connection:
        expired = [name for name in _tables(connection) if name < table_of(kept)]
    for name in expired:
        table = _table(name)
        some = sa.select(table.c.id).where(table.c.model == model).limit(_AT_ONCE)
        while _changed(ledger, name, sa.delete(table).where(table.c.id.in_(some))):
            pass  # little by little: the answers of a service wait for the same lock
        with _writing(ledger, name) as connection:
            if connection and connection.scalar(sa.select(sa.exists(sa.select(table.c.id)))) is False:
                connection.execute(sa.text(f"DROP TABLE {name}"))
                dropped.append(name)
    old = sa.delete(OUTCOMES).where(OUTCOMES.c.model == model, OUTCOMES.c.prediction_id < kept)
    _changed(ledger, OUTCOMES.name, old)
    return tuple(dropped)


def _changed(ledger: Ledger, table: str, statement: sa.Delete) -> int:
    with _writing(ledger, table) as connection:
        return connection.execute(statement).rowcount if connection else 0


@contextmanager
def _writing(ledger: Ledger, table: str) -> Iterator[sa.Connection | None]:
    """A transaction that changes a table; None where there is none any more: another process may forget as well."""
    with ledger.writing() as connection:
        yield connection if sa.inspect(connection).has_table(table) else None


def _during(table: sa.TableClause, since: datetime, until: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.at >= since.timestamp(), table.c.at < until.timestamp()


def _tables(connection: sa.Connection | None) -> list[str]:
    """Names of the months' tables, oldest first."""
    names = sa.inspect(connection).get_table_names() if connection is not None else []
    return sorted(filter(_TABLE.fullmatch, names))


def _table(name: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in COLUMNS))


def _records(connection: sa.Connection, ids: Iterable[str], columns: Collection[str]) -> Iterator[sa.Row[Any]]:
    """The records that these ids, or the rows that they name, are of."""
    by_table: dict[str, set[str]] = {}
    for match in filter(None, map(_ID.fullmatch, ids)):
        by_table.setdefault(table_of(match[1]), set()).add(match[1])
    for name in _tables(connection):
        table, wanted = _table(name), sorted(by_table.get(name, ()))
        chosen = [table.c[column] for column in columns]
        for start in range(0, len(wanted), _AT_ONCE):
            yield from connection.execute(sa.select(*chosen).where(table.c.id.in_(wanted[start : start + _AT_ONCE])))


def _expanded(row: sa.Row[Any]) -> Iterator[Prediction]:
    content = json.loads(row.content)
    at = datetime.fromtimestamp(row.at, UTC)
    same = (at, row.model, row.version, row.variant, row.entity, row.trace)
    true_at = content.get("at")
    if row.rows is None:
        yield Prediction(row.id, *same, content["inputs"], content["answer"], true_at)
        return
    for position, (values, answer) in enumerate(zip(content["inputs"], content["answers"], strict=True)):
        inputs = dict(zip(content["columns"], values, strict=True))
        yield Prediction(f"{row.id}-{position}", *same, inputs, answer, true_at)
