"""The prediction log's writing side: every answer is durable before it leaves.

A record is handed over on the event loop and becomes a future, which is done once a synced commit holds the record. One
thread of each worker process writes: it takes all that waits, in one transaction, so that the price of the sync is
shared by those that came meanwhile. What was handed over and not confirmed may still be in the log, never the other way
round.

Records lie in one table a month, `predictions_2026_11`, made when the month has its first one. An id says its time, so
it names its table.
"""

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from models.errors import GauntletError, WorkError, bounded

if TYPE_CHECKING:
    import sqlalchemy as sa

log = logging.getLogger("gauntlet.log")

MOST_RECORDS: Final = 10_000
MOST_BYTES: Final = 64 * 2**20
MOST_AT_ONCE: Final = 64
PROBE_SECONDS: Final = 1.0
PATIENCE: Final = 5
COLUMNS: Final = ("id", "at", "model", "version", "variant", "entity", "trace", "rows", "content")
_KINDS: Final = (
    *("VARCHAR(32) PRIMARY KEY", "DOUBLE PRECISION NOT NULL", "TEXT NOT NULL", "INTEGER NOT NULL", "TEXT NOT NULL"),
    *("TEXT", "TEXT", "INTEGER", "TEXT NOT NULL"),
)
_VARIANT: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


@dataclass(frozen=True, slots=True)
class Record:
    """One request that was answered: a row, or a batch of rows.

    Attributes:
        id: Of `new_id`; a batch's rows are `<id>-<row>`.
        at: When it was answered: the moment that `id` was made of, in seconds since 1970, UTC.
        model: Name of the model.
        version: The version that answered.
        variant: As what it answered.
        entity: Whom it is about, as `keyed` gives it.
        trace: The request's OpenTelemetry trace, 32 hex digits.
        rows: Rows of a batch; None for a single one.
        content: JSON in UTF-8: `{"inputs": {...}, "answer": {...}}`, of a batch
            `{"columns": [...], "inputs": [[...], ...], "answers": [...]}`.
    """

    id: str
    at: float
    model: str
    version: int
    variant: str
    entity: str | None
    trace: str | None
    rows: int | None
    content: bytes


class LogUnavailable(WorkError):
    """A record could not be made durable; whether it is in the log all the same is not known.

    Attributes:
        retry_after: Seconds after which trying again may help.
    """

    def __init__(self, why: str, retry_after: int) -> None:
        super().__init__(why)
        self.retry_after = retry_after


def new_id(moment: float, seed: bytes | None = None) -> str:
    """An id made at `moment` (seconds since 1970): 32 hex digits in the layout of UUID version 7.

    The first 12 are the milliseconds, so that ids sort by time; 74 bits are random, or follow from `seed`: who must
    give the same answer the same id again has one of at least 10 bytes, of a hash.
    """
    dice = (seed[:10] if seed else os.urandom(10)).hex()
    return f"{int(moment * 1000):012x}7{dice[:3]}{_VARIANT[dice[3]]}{dice[4:19]}"


def first_id(moment: float) -> str:
    """What sorts before every id that is made from `moment` on, and after every earlier one, to the millisecond."""
    return f"{int(moment * 1000):012x}"


def table_of(identity: str) -> str:
    """Name of the table that holds an id's month, in UTC."""
    made = time.gmtime(int(identity[:12], 16) // 1000)
    return f"predictions_{made.tm_year:04d}_{made.tm_mon:02d}"


def is_sampled(identity: str, share: float) -> bool:
    """Whether `share` (0 to 1) of all ids includes this one; every process says the same. A batch goes by its id."""
    return zlib.crc32(identity.encode()) < share * 2**32


def keyed(entity: str) -> str:
    """How an entity is stored: hashed under this home's key, as ingest does with personal columns."""
    from bentos.frame import pseudonym

    return pseudonym(entity, _secret())


class PredictionLog:
    """The log of one worker process.

    It has neither thread nor connection before `start` or the first record: until then a fork is safe. `write`, `offer`
    and `depth` belong to the event loop; one loop a log.

    Attributes:
        lost: Rows given to `offer` that could not be written.
    """

    # The thread sets `_fault` and the event loop `_stalled`: neither takes back what the other has said.

    def __init__(self, url: str | None = None, most_records: int = MOST_RECORDS, most_bytes: int = MOST_BYTES) -> None:
        """Name the database; nothing is opened yet.

        Args:
            url: As `stacks.ledger.Ledger` takes it; the environment's when left out.
            most_records: How many may wait, before others are refused.
            most_bytes: How much content may wait; one record is taken whatever its size.
        """
        self.lost = 0
        self._fault: str | None = None
        self._stalled: str | None = None
        self._url = url
        self._most_records, self._most_bytes = most_records, most_bytes
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._pending: dict[asyncio.Future[None], int] = {}
        self._bytes = 0
        self._still = 0
        self._watching = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def fault(self) -> str | None:
        """Why nothing can be written just now, in words without values; None while all is well."""
        return self._fault or self._stalled

    @property
    def depth(self) -> int:
        """Records that wait for their commit."""
        return len(self._pending)

    def start(self) -> None:
        """Begin to connect, in the thread that will write."""
        if self._thread is None:
            import stacks.ledger  # noqa: F401  imported beside a busy event loop it would take seconds

            self._thread = threading.Thread(target=self._run, name="gauntlet-predictions", daemon=True)
            self._thread.start()

    def write(self, record: Record) -> "asyncio.Future[None]":
        """Hand over a record; the future is done when it is durable, and fails with `LogUnavailable` when it is not.

        While the database is away or too much waits, it fails at once.
        """
        loop = self._loop = asyncio.get_running_loop()
        future = loop.create_future()
        size = len(record.content)
        if refusal := self._refusal(size):
            future.set_exception(refusal)
            return future
        self.start()
        self._pending[future] = size
        self._bytes += size
        self._queue.put((record, future))
        if not self._watching:
            self._watching, self._still = True, 0
            loop.call_later(PROBE_SECONDS, self._watch)
        return future

    def offer(self, record: Record) -> None:
        """Hand over a record that nobody waits for; `lost` counts its rows if it is not written."""
        self.write(record).add_done_callback(partial(self._count, record.rows or 1))

    def take_lost(self) -> int:
        """How many rows were lost since this was asked last."""
        lost, self.lost = self.lost, 0
        return lost

    def close(self, timeout: float = 10.0) -> bool:
        """Take no more, write what waits, and let go of the database.

        Args:
            timeout: Seconds to wait for that. Futures become done only when the event loop runs again.

        Returns:
            Whether it was done in that time.
        """
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _refusal(self, size: int) -> LogUnavailable | None:
        if self._closed or self._fault or self._stalled:
            return LogUnavailable(self.fault or "the prediction log is closed", 2)
        if len(self._pending) >= self._most_records or (self._pending and self._bytes + size > self._most_bytes):
            return LogUnavailable(f"{len(self._pending)} records wait for the prediction log already", 1)
        return None

    def _count(self, rows: int, future: "asyncio.Future[None]") -> None:
        if future.cancelled() or future.exception():
            self.lost += rows

    def _settle(self, futures: Iterable["asyncio.Future[None]"]) -> None:
        self._still, self._stalled = 0, None
        for future in futures:
            self._bytes -= self._pending.pop(future, 0)
            if not future.done():
                future.set_result(None)

    def _fail(self, why: str) -> None:
        self._still, self._stalled = 0, None
        for future in self._pending:
            if not future.done():
                future.set_exception(LogUnavailable(why, 2))
        self._pending.clear()
        self._bytes = 0

    def _watch(self) -> None:
        """Fail what waits for a database that says neither yes nor no: a dead network, a disk that hangs."""
        assert self._loop is not None
        self._still += 1
        if self._pending and self._still > PATIENCE:
            stalled = _said(f"no commit in {PATIENCE} s")
            log.error(stalled)
            self._fail(stalled)
            self._stalled = stalled
        self._watching = bool(self._pending)
        if self._watching:
            self._loop.call_later(PROBE_SECONDS, self._watch)

    def _run(self) -> None:
        """The thread: write until closed; after a fault, ask every second whether the database is back."""
        while True:
            store: _Store | None = None
            try:
                store = _connect(self._url)
                store.prove()
                if self._fault:
                    log.info("the prediction log can be written again")
                    self._fault = None
                self._work(store)
                return
            except Exception as error:  # the drivers' own classes, and SQLAlchemy's around them
                fault = _said(_reason(error))
                if self._fault is None:
                    log.error("%s; asking again every second", fault)
                self._fault = fault
                self._on_loop(self._fail, fault)
            finally:
                if store:
                    store.close()
            self._pause()
            if self._closed:
                return

    def _work(self, store: "_Store") -> None:
        """Write group after group until None comes, which says that the log is closed."""
        item = self._queue.get()
        while item:
            with store.turn():
                group = [item]
                with suppress(queue.Empty):
                    while len(group) < MOST_AT_ONCE and (item := self._queue.get_nowait()):
                        group.append(item)
                for table, items in groupby(group, _table_of_item):
                    self._on_loop(self._settle, _written(store, table, items))
            item = item and self._queue.get()

    def _pause(self) -> None:
        """Wait until it is time to ask again, dropping what came just before the fault; no longer when closed."""
        until = time.monotonic() + PROBE_SECONDS
        with suppress(queue.Empty):
            while not self._closed and (left := until - time.monotonic()) > 0:
                self._queue.get(timeout=left)

    def _on_loop(self, function: Callable[[Any], None], argument: Any) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(function, argument)


class DirectLog:
    """The log of who waits for each record himself: one connection, no thread and no event loop of its own."""

    def __init__(self, url: str | None = None) -> None:
        """Name the database, as for `PredictionLog`; nothing is opened yet."""
        self._url = url
        self._store: _Store | None = None

    def write(self, record: Record) -> None:
        """Make a record durable; one whose id is in the log already is passed over.

        Raises:
            LogUnavailable: It could not be written; the next call connects anew.
        """
        try:
            self._store = self._store or _connect(self._url)
            with self._store.turn():
                self._store.insert(table_of(record.id), [_row(record)])
        except Exception as error:  # the drivers' own classes, and SQLAlchemy's around them
            self.close()
            raise LogUnavailable(_said(_reason(error)), 2) from None

    def close(self) -> None:
        """Let go of the database."""
        if self._store:
            self._store.close()
        self._store = None


_Item = tuple[Record, "asyncio.Future[None]"]
_Row = tuple[Any, ...]


class _Store:
    """One open connection to the database, and how its engine takes records."""

    mark: ClassVar[str]
    begin: ClassVar[str]

    def __init__(self, url: "sa.URL") -> None:
        from stacks.ledger import make_engine

        self._held = make_engine(url).raw_connection()
        self._connection: Any = self._held.driver_connection
        self._tables: set[str] = set()
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def turn(self) -> AbstractContextManager[None]:
        """Wait for this process's turn to write, where the engine leaves that to chance."""
        return nullcontext()

    def insert(self, table: str, rows: Sequence[_Row]) -> None:
        """Write rows in one durable transaction; an id that is there already is passed over."""
        if table not in self._tables:
            self._make(table)
            self._tables.add(table)
        self._write(table, rows)

    def prove(self) -> None:
        """Commit something that leaves no trace: a database that answers may still have a full disk."""
        now = time.time()
        identity = new_id(now)
        table = table_of(identity)
        row = _row(Record(identity, now, "", 0, "", None, None, None, b"{}"))
        with self.turn():
            self._make(table)
            self._connection.execute(self.begin)
            self._connection.execute(_insertion(table, self.mark, 1), row)
            self._connection.execute(f"DELETE FROM {table} WHERE id = {self.mark}", (identity,))
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the connection, in whatever state it is."""
        with suppress(Exception):
            self._held.invalidate()

    def _prepare(self) -> None:
        raise NotImplementedError

    def _make(self, table: str) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, _KINDS, strict=True))
        self._connection.execute(self.begin)
        self._exclude()
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        self._connection.execute(f"CREATE INDEX IF NOT EXISTS {table}_at ON {table} (model, at)")
        self._connection.execute("COMMIT")

    def _exclude(self) -> None:
        """Keep others from making the same table at once."""

    def _write(self, table: str, rows: Sequence[_Row]) -> None:
        self._connection.execute(_insertion(table, self.mark, len(rows)), list(chain.from_iterable(rows)))


class _Sqlite(_Store):
    """One statement is a whole transaction: the interpreter's lock is given up once a group, not once a row."""

    mark, begin = "?", "BEGIN IMMEDIATE"

    def __init__(self, url: "sa.URL") -> None:
        turns = Path(f"{url.database}.turn")
        turns.parent.mkdir(parents=True, exist_ok=True)
        self._turns = turns.open("ab")
        super().__init__(url)

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA busy_timeout = 2000")
        # Two that change the mode at once are not let wait for each other: one is told that the file is locked.
        with self.turn():
            self._connection.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def turn(self) -> Iterator[None]:
        # SQLite's own waiting is a poll with growing sleeps, in which the process that wrote last wins again.
        fcntl.flock(self._turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._turns, fcntl.LOCK_UN)

    def close(self) -> None:
        super().close()
        self._turns.close()


class _Postgres(_Store):
    """A COPY is a whole transaction, and the cheapest one."""

    mark, begin = "%s", "BEGIN"

    def __init__(self, url: "sa.URL") -> None:
        # A server that has gone without a word is noticed within seconds, not after a quarter of an hour.
        super().__init__(url.update_query_dict({"tcp_user_timeout": "5000", "keepalives_idle": "5"}))

    def _prepare(self) -> None:
        self._connection.autocommit = True
        self._connection.execute("SET synchronous_commit = on")
        self._connection.execute("SET statement_timeout = '10s'")

    def _exclude(self) -> None:
        self._connection.execute("SELECT pg_advisory_xact_lock(hashtext('gauntlet.predictions'))")

    def _write(self, table: str, rows: Sequence[_Row]) -> None:
        from psycopg.errors import UniqueViolation

        try:
            with self._connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        except UniqueViolation:
            super()._write(table, rows)


def _connect(url: str | None) -> _Store:
    from stacks.ledger import database_url, parse_url

    parsed = parse_url(url or database_url())
    return _Sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _Postgres(parsed)


def _written(store: _Store, table: str, items: Iterable[_Item]) -> list["asyncio.Future[None]"]:
    """Make records of one month durable, and give their futures."""
    rows, futures = [], []
    for record, future in items:
        futures.append(future)
        # One whose caller has left, or was told of a fault, has no answer to be durable for.
        if not future.done():
            rows.append(_row(record))
    if rows:
        store.insert(table, rows)
    return futures


def _table_of_item(item: _Item) -> str:
    return table_of(item[0].id)


_plain = attrgetter(*COLUMNS[:-1])


def _row(record: Record) -> _Row:
    return (*_plain(record), record.content.decode("utf-8", "replace"))


@lru_cache(maxsize=4 * MOST_AT_ONCE)
def _insertion(table: str, mark: str, rows: int) -> str:
    row = f"({', '.join([mark] * len(COLUMNS))})"
    return f"INSERT INTO {table} ({', '.join(COLUMNS)}) VALUES {', '.join([row] * rows)} ON CONFLICT (id) DO NOTHING"


@lru_cache(maxsize=1)
def _secret() -> bytes:
    from stacks.home import secret_key

    return secret_key()


def _said(why: str) -> str:
    return f"the prediction log cannot be written: {why}"


def _reason(error: Exception) -> str:
    """What is wrong, without a value of a record: PostgreSQL quotes them in all errors but operational ones."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    is_operational = any(kind.__name__ == "OperationalError" for kind in type(cause).__mro__)
    if not is_operational and not isinstance(cause, GauntletError | sqlite3.Error):
        return type(cause).__name__
    return bounded((str(cause).strip().splitlines() or [type(cause).__name__])[0], 200)
