"""The ledger: who was champion when, by whose hand and why. Append-only, hash-chained, the truth of promotion.

An entry's hash is the SHA-256, in hex, of the UTF-8 text

    {"action":…,"actor":…,"model":…,"payload":…,"previous":…,"sequence":…,"time":…,"version":…,"why":…}

which is JSON with its keys in that (sorted) order, no spaces, and no escapes beyond those that JSON demands. `payload`
stands in it as the stored text, a JSON string; `sequence` is a number counting from 1 without gaps; `version` a number
or null; `time` is UTC as `2025-01-31T12:00:00.000000Z` and never falls; `previous` is the hash of the entry before, of
the first one 64 zeros.
"""

import getpass
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from models.errors import ConfigError, WorkError, bounded
from stacks.audit import GENESIS, audit, recall, remember
from stacks.home import home_dir
from stacks.lifecycle import AGAIN, CROWNING, Standing, State, standing

Action = Literal["promote", "keep", "reject", "pending", "rollback", "retire", "monitor", "key"]

REVISION: Final = "0005"
VERSION_TABLE: Final = "gauntlet_revision"
PATIENCE: Final = 60.0
WHY_LIMIT: Final = 2_000
UNVERIFIED: Final = "unverified:"

TABLE: Final = sa.Table(
    "ledger",
    sa.MetaData(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("previous", sa.String(64)),
    sa.Column("hash", sa.String(64)),
    sa.Column("time", sa.String(27)),
    sa.Column("actor", sa.Text),
    sa.Column("action", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("why", sa.Text),
    sa.Column("payload", sa.Text),
)


class Unset(Enum):
    """The one value that says an argument was not given, where None means something."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


class Conflict(WorkError):
    """The champion is no longer the one that the change was judged against; nothing was written."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    sequence: int
    previous: str
    hash: str
    time: datetime
    actor: str
    action: str
    model: str
    version: int | None
    why: str
    payload: Mapping[str, Any]

    @property
    def waits_until(self) -> datetime | None:
        """When the challenger of a `pending` entry stops waiting for a person; None for every other entry."""
        seconds = self.payload.get("waits_seconds")
        return self.time + timedelta(seconds=seconds) if self.action == "pending" and seconds else None


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces, and no escapes beyond those that JSON demands.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON has not.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def current_actor(ledger: "Ledger | None" = None) -> str:
    """Who acts: `key:<name>` by the key in `GAUNTLET_KEY`; without one `unverified:<user of the operating system>`.

    Args:
        ledger: Whose keys are looked at; the environment's when left out.

    Raises:
        ConfigError: `GAUNTLET_KEY` is set and no active key of an admin.
        WorkError: The database cannot be used.
    """
    if (presented := os.environ.get("GAUNTLET_KEY")) is not None:
        from stacks.keys import actor_of

        return actor_of(presented, ledger)
    try:
        return f"{UNVERIFIED}{getpass.getuser()}"
    except (KeyError, OSError):
        return f"{UNVERIFIED}uid-{os.getuid()}"


class Ledger:
    """The ledger of one database. Cheap to make, safe to fork: it holds no open connection."""

    def __init__(self, url: str, keep_connection: bool = False, patience: float = PATIENCE) -> None:
        """Name the database; its table is made at first use.

        Args:
            url: `sqlite:///<file>`, or a PostgreSQL URL.
            keep_connection: Whether a connection stays open between uses, for who asks all the time; not to be
                forked then.
            patience: Seconds to wait for a file that another process writes to.

        Raises:
            ConfigError: The URL is of no such form.
        """
        self._url = parse_url(url)
        self._engine = make_engine(self._url, keep_connection, patience)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._ready = False

    @property
    def shown(self) -> str:
        """The database as it may be printed: without password and options."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    def append(
        self,
        action: Action,
        model: str,
        version: int | None,
        *,
        why: str = "",
        actor: str | None = None,
        payload: Mapping[str, Any] | None = None,
        expect_champion: int | Unset | None = UNSET,
        expect_tip: int | None = None,
        alongside: Callable[[sa.Connection], None] | None = None,
    ) -> Entry:
        """Write one entry; durable when this returns.

        Two writers at once cannot both take the next sequence number: one of them reads again and retries.

        Args:
            action: What was done.
            model: To which model; "" for what concerns them all.
            version: To which of its versions.
            why: The reason in a person's words; cut at 2,000 characters.
            actor: Who did it; `current_actor()` when not given.
            payload: JSON-ready facts. The caller keeps secrets and personal values out.
            expect_champion: The champion that this was judged against (None: that there is none), checked in the same
                transaction.
            expect_tip: The model's newest entry that this was decided by, checked in the same transaction.
            alongside: What else of this database is written in the same transaction; run again when a retry is needed.

        Raises:
            Conflict: The champion, or the model's newest entry, is another one by now.
            WorkError: The champion would be retired, the version is retired already, or the database cannot be reached
                or stays busy.
        """
        text = canonical(dict(payload or {}))
        fields = {
            "actor": _clean(actor or current_actor(self)),
            "action": action,
            "model": model,
            "version": version,
            "why": bounded(_clean(why), WHY_LIMIT),
            "payload": _clean(text),
        }
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self._begin(write=True) as connection:
                    entry = self._insert(connection, fields, expect_champion, expect_tip)
                    if alongside:
                        alongside(connection)
                remember(self._anchor, entry)
                return entry
            except IntegrityError as error:
                if self._is_sqlite:
                    raise self._unusable(error) from None
                if time.monotonic() > deadline:
                    raise WorkError(f"the ledger {self.shown} was too busy for {PATIENCE:.0f} s; try again") from None
                time.sleep(random.uniform(0.001, 0.02))

    def champion(self, model: str) -> int | None:
        """The version that serves, or None when none was ever promoted."""
        with self._begin() as connection:
            return _champion(connection, model)

    def champion_at(self, model: str, moment: datetime) -> int | None:
        """The version that served at `moment` (UTC when it names no zone)."""
        with self._begin() as connection:
            return _champion(connection, model, until=_stamp(moment))

    def previous(self, model: str) -> int | None:
        """The version that a rollback returns to."""
        return self.standing(model).previous

    def state(self, model: str, version: int) -> State:
        """Lifecycle state of a version; `experimentation` when no entry names it."""
        return self.standing(model).state(version)

    def standing(self, model: str) -> Standing:
        """Champion, previous, challenger and the state of every version."""
        return standing(self.history(model))

    def history(self, model: str) -> tuple[Entry, ...]:
        """All entries of a model, oldest first."""
        return tuple(self._entries(TABLE.c.model == model))

    def histories(self) -> dict[str, tuple[Entry, ...]]:
        """All entries by model, oldest first, without their payloads: one query for any number of models."""
        columns = [column for column in TABLE.c if column.name != "payload"]
        found: dict[str, list[Entry]] = {}
        with self._begin() as connection:
            for row in connection.execute(sa.select(*columns).order_by(TABLE.c.sequence)):
                found.setdefault(row.model, []).append(_entry({**row._mapping, "payload": "{}"}))
        return {model: tuple(entries) for model, entries in found.items()}

    def payloads(self, sequences: Collection[int]) -> dict[int, Mapping[str, Any]]:
        """The payloads of some entries by sequence: one query."""
        query = sa.select(TABLE.c.sequence, TABLE.c.payload).where(TABLE.c.sequence.in_(sequences))
        with self._begin() as connection:
            return {row.sequence: json.loads(row.payload) for row in connection.execute(query)}

    def changed_since(self, sequence: int) -> tuple[int, frozenset[str]]:
        """The newest entry's sequence, and the models of the entries after `sequence`."""
        with self._begin() as connection:
            query = sa.select(TABLE.c.sequence, TABLE.c.model).where(TABLE.c.sequence > sequence)
            found = connection.execute(query).all()
        return max((row.sequence for row in found), default=sequence), frozenset(row.model for row in found)

    def tip(self, model: str) -> int:
        """Sequence of the model's newest entry; 0 when it has none."""
        with self._begin() as connection:
            return _tip(connection, model)

    def models(self) -> tuple[str, ...]:
        """Names of the models that have entries, sorted."""
        with self._begin() as connection:
            return tuple(sorted(filter(None, connection.scalars(sa.select(TABLE.c.model).distinct()))))

    def export(self) -> list[dict[str, Any]]:
        """All entries, oldest first, each field as it is stored and hashed; see the module for how."""
        with self._begin() as connection:
            return [dict(row._mapping) for row in connection.execute(sa.select(TABLE).order_by(TABLE.c.sequence))]

    def verify(self) -> list[str]:
        """Walk the chain from the first entry and say what is wrong with which; an empty list is a sound ledger.

        Entries cut off at the end, and a chain whose hashes were all computed anew, are sound in themselves: they are
        seen by what this home remembers to have written.
        """
        query = sa.select(TABLE).order_by(TABLE.c.sequence).execution_options(yield_per=1_000)
        # Recalled first: an entry that is written meanwhile is in the ledger before this home remembers it.
        memory = recall(self._anchor)
        with self._begin() as connection, self._any_text(connection):
            return audit(connection.execute(query), memory, _digest)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read what else the database holds, brought to this revision first."""
        with self._begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction on what else the database holds, which changes under no other writer; durable at its end."""
        with self._begin(write=True) as connection:
            if not self._is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('gauntlet.writing'))"))
            yield connection

    @contextmanager
    def peeking(self) -> Iterator[sa.Connection | None]:
        """A connection to read by that changes nothing, the revision neither; None where there is no file yet."""
        if self._is_sqlite and not Path(str(self._url.database)).is_file():
            yield None
            return
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise self._unusable(error) from None

    @property
    def _anchor(self) -> Path:
        """Where this home notes what it wrote to this ledger."""
        # With its options: a schema of PostgreSQL is one of them.
        named = self._url.render_as_string(hide_password=True)
        return home_dir() / "anchors" / f"{hashlib.sha256(named.encode()).hexdigest()[:12]}.json"

    @contextmanager
    def _any_text(self, connection: sa.Connection) -> Iterator[None]:
        """Read texts that are no UTF-8 too: one forged entry must not hide which it is."""
        if not self._is_sqlite:
            yield
            return
        driver: Any = connection.connection.dbapi_connection
        driver.text_factory = lambda raw: raw.decode("utf-8", "replace")
        try:
            yield
        finally:
            driver.text_factory = str

    def _entries(self, condition: sa.ColumnElement[bool]) -> list[Entry]:
        with self._begin() as connection:
            rows = connection.execute(sa.select(TABLE).where(condition).order_by(TABLE.c.sequence)).all()
        return [_entry(row) for row in rows]

    def _insert(
        self, connection: sa.Connection, fields: dict[str, Any], expect: int | Unset | None, expect_tip: int | None
    ) -> Entry:
        # The tip is read first: whatever is read after it and was changed meanwhile makes the insert collide.
        query = sa.select(TABLE.c.sequence, TABLE.c.hash, TABLE.c.time).order_by(TABLE.c.sequence.desc()).limit(1)
        tip = connection.execute(query).first()
        champion = _champion(connection, fields["model"])
        if not isinstance(expect, Unset) and champion != expect:
            raise Conflict(
                f"the champion of '{fields['model']}' is {_named(champion)} now, but {_named(expect)} was judged "
                "against; nothing was changed: run it again"
            )
        if expect_tip is not None and (newest := _tip(connection, fields["model"])) != expect_tip:
            raise Conflict(
                f"the newest entry of '{fields['model']}' is {newest} now, but this was decided by {expect_tip}; "
                "nothing was changed: run it again"
            )
        if fields["action"] == "retire" and champion is not None and fields["version"] == champion:
            raise WorkError(f"v{champion} of '{fields['model']}' is the champion; put another in its place first")
        if fields["version"] is not None and _is_retired(connection, fields["model"], fields["version"]):
            raise WorkError(f"v{fields['version']} of '{fields['model']}' is retired; {AGAIN}")
        row = {
            **fields,
            "sequence": tip.sequence + 1 if tip else 1,
            "previous": tip.hash if tip else GENESIS,
            "time": max(_stamp(datetime.now(UTC)), tip.time if tip else ""),
        }
        row["hash"] = _digest(row)
        connection.execute(TABLE.insert().values(row))
        return _entry(row)

    @contextmanager
    def _begin(self, write: bool = False) -> Iterator[sa.Connection]:
        if not self._ready:
            self._migrate()
            self._ready = True
        try:
            with self._engine.connect() as connection, connection.begin():
                if write and self._is_sqlite:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise self._unusable(error) from None

    def _migrate(self) -> None:
        """Bring the table to `REVISION`, once, however many processes start together."""
        try:
            if self._revision() == REVISION:
                return
            with self._migration_lock(), self._engine.connect() as connection:
                if self._is_sqlite:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                else:
                    # Held until the transaction ends, which is after the revisions have run.
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('gauntlet.migrations'))"))
                _upgrade(connection)
                connection.commit()
        except DBAPIError as error:
            raise self._unusable(error) from None

    def _revision(self) -> str | None:
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(VERSION_TABLE):
                return None
            found: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
        if found is not None and found > REVISION:
            raise ConfigError(
                f"the database {self.shown} was written by a newer Gauntlet (revision {found}, this one knows "
                f"{REVISION}); update the clone"
            )
        return found

    def _migration_lock(self) -> Any:
        return FileLock(f"{self._url.database}.lock", timeout=PATIENCE) if self._is_sqlite else nullcontext()

    def _unusable(self, error: DBAPIError) -> WorkError:
        said = str(error.orig).strip().splitlines() or ["no reason given"]
        return WorkError(f"the ledger {self.shown} cannot be used: {bounded(said[0], 300)}")


def database_url() -> str:
    """The ledger's database: `GAUNTLET_DATABASE`, else `gauntlet.db` in the home."""
    return os.environ.get("GAUNTLET_DATABASE") or home_database()


def home_database() -> str:
    """The database of the home, `gauntlet.db`."""
    return f"sqlite:///{home_dir() / 'gauntlet.db'}"


def open_ledger() -> Ledger:
    """The ledger of this process's environment.

    Raises:
        ConfigError: `GAUNTLET_DATABASE` is no URL of SQLite or PostgreSQL.
    """
    return _opened(database_url())


@lru_cache(maxsize=8)
def _opened(url: str) -> Ledger:
    return Ledger(url)


def parse_url(text: str) -> sa.URL:
    """The URL of a database that can hold a ledger; a file's path becomes absolute.

    Raises:
        ConfigError: It is of no such form, or names a database in memory.
    """
    allowed = "write sqlite:///<file> or postgresql://<user>@<host>:<port>/<database>"
    try:
        url = sa.make_url(text)
    except ArgumentError:
        raise ConfigError(f"GAUNTLET_DATABASE is no database URL; {allowed}") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigError(f"GAUNTLET_DATABASE names '{url.drivername}', which is not supported; {allowed}")
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:") or "mode" in url.query:
            raise ConfigError(f"a ledger in memory would forget; {allowed}")
        url = url.set(database=str(Path(str(url.database)).absolute()))
    return url


def make_engine(url: sa.URL, keep_connection: bool = False, patience: float = PATIENCE) -> sa.Engine:
    """An engine that keeps one connection open or none; SQLite's commits are synced to the disk, its folder is made."""
    pool: dict[str, Any] = {"poolclass": sa.NullPool}
    if keep_connection:
        pool = {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 1, "pool_pre_ping": True}
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, **pool, connect_args={"connect_timeout": 10})
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    # Any thread may use what the pool lends it: one at a time.
    engine = sa.create_engine(url, **pool, connect_args={"timeout": patience, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: Any) -> None:
        # None: the driver must not open transactions of its own, they would begin as readers.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    command.upgrade(config, REVISION)


def _champion(connection: sa.Connection, model: str, until: str | None = None) -> int | None:
    query = sa.select(TABLE.c.version).where(TABLE.c.model == model, TABLE.c.action.in_(CROWNING))
    if until is not None:
        query = query.where(TABLE.c.time <= until)
    found: int | None = connection.scalar(query.order_by(TABLE.c.sequence.desc()).limit(1))
    return found


def _tip(connection: sa.Connection, model: str) -> int:
    return connection.scalar(sa.select(sa.func.max(TABLE.c.sequence)).where(TABLE.c.model == model)) or 0


def _is_retired(connection: sa.Connection, model: str, version: int) -> bool:
    query = sa.select(TABLE.c.sequence).where(
        TABLE.c.model == model, TABLE.c.version == version, TABLE.c.action == "retire"
    )
    return connection.scalar(query.limit(1)) is not None


def _digest(row: Mapping[str, Any]) -> str:
    names = ("action", "actor", "model", "payload", "previous", "sequence", "time", "version", "why")
    return hashlib.sha256(canonical({name: row[name] for name in names}).encode()).hexdigest()


def _entry(row: sa.Row[Any] | Mapping[str, Any]) -> Entry:
    fields = dict(row if isinstance(row, Mapping) else row._mapping)
    fields["time"] = datetime.fromisoformat(fields["time"])
    fields["payload"] = json.loads(fields["payload"])
    return Entry(**fields)


def _stamp(moment: datetime) -> str:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    # Not strftime, which writes the year 999 in three digits: texts would not sort as times do.
    return aware.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _clean(text: str) -> str:
    """Text that both engines store: no NUL, no half of a surrogate pair."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _named(version: int | None) -> str:
    return "no version" if version is None else f"v{version}"
