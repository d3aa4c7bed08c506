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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from models.errors import ConfigError, WorkError, bounded
from stacks.home import home_dir

Action = Literal["promote", "keep", "reject", "pending", "rollback", "retire", "key"]
State = Literal["champion", "previous", "pending", "archived", "retired", "registered"]

REVISION: Final = "0002"
VERSION_TABLE: Final = "gauntlet_revision"
GENESIS: Final = "0" * 64
PATIENCE: Final = 60.0
CROWNING: Final = ("promote", "rollback")
WHY_LIMIT: Final = 2_000

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


@dataclass(frozen=True)
class Standing:
    """What a model's entries add up to.

    Attributes:
        sequence: The model's newest entry; 0 when it has none.
        champion: The version that serves.
        previous: The version that a rollback returns to.
        challenger: The version that waits for a person.
        crowned: Every version that was ever champion, in order of its first time.
        states: Lifecycle state of every version that an entry names.
        latest: Every version's newest entry.
    """

    sequence: int
    champion: int | None
    previous: int | None
    challenger: int | None
    crowned: tuple[int, ...]
    states: Mapping[int, State]
    latest: Mapping[int, Entry]


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces, and no escapes beyond those that JSON demands.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON has not.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def current_actor() -> str:
    """Who acts, as far as it is known: `unverified:<user of the operating system>`."""
    try:
        return f"unverified:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"unverified:uid-{os.getuid()}"


def standing(entries: Sequence[Entry]) -> Standing:
    """Derive champion, previous and the states of all versions from one model's entries, oldest first.

    Champions form a stack: a promotion puts its version on top, a rollback takes off what lies above its version, so
    that the one below is what the next rollback returns to.
    """
    stack: list[int] = []
    crowned: dict[int, None] = {}
    words: dict[int, str] = {}
    latest: dict[int, Entry] = {}
    for entry in entries:
        if entry.version is None:
            continue
        version = entry.version
        latest[version] = entry
        words[version] = entry.action
        if entry.action in CROWNING:
            crowned[version] = None
            returns = entry.action == "rollback" and version in stack
            stack = stack[: stack.index(version) + 1] if returns else [v for v in stack if v != version] + [version]
        elif entry.action == "retire":
            stack = [v for v in stack if v != version]
    champion = stack[-1] if stack else None
    previous = stack[-2] if len(stack) > 1 else None
    states = {version: _state(version, champion, previous, word) for version, word in words.items()}
    waiting = [version for version in latest if states[version] == "pending"]
    return Standing(
        sequence=entries[-1].sequence if entries else 0,
        champion=champion,
        previous=previous,
        challenger=max(waiting, key=lambda v: latest[v].sequence) if waiting else None,
        crowned=tuple(crowned),
        states=states,
        latest=latest,
    )


def _state(version: int, champion: int | None, previous: int | None, word: str) -> State:
    if version == champion:
        return "champion"
    if version == previous:
        return "previous"
    return {"pending": "pending", "retire": "retired"}.get(word, "archived")  # type: ignore[return-value]


class Ledger:
    """The ledger of one database. Cheap to make, safe to fork: it holds no open connection."""

    def __init__(self, url: str) -> None:
        """Name the database; its table is made at first use.

        Args:
            url: `sqlite:///<file>`, or a PostgreSQL URL.

        Raises:
            ConfigError: The URL is of no such form.
        """
        self._url = _parse_url(url)
        self._engine = _engine(self._url)
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
            alongside: What else of this database is written in the same transaction; run again when a retry is needed.

        Raises:
            Conflict: The champion is another one by now.
            WorkError: The champion would be retired, or the database cannot be reached or stays busy.
        """
        text = canonical(dict(payload or {}))
        fields = {
            "actor": _clean(actor or current_actor()),
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
                    entry = self._insert(connection, fields, expect_champion)
                    if alongside:
                        alongside(connection)
                self._remember(entry)
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
        """Lifecycle state of a version; `registered` when no entry names it."""
        return self.standing(model).states.get(version, "registered")

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

    def tip(self, model: str) -> int:
        """Sequence of the model's newest entry; 0 when it has none."""
        query = sa.select(sa.func.max(TABLE.c.sequence)).where(TABLE.c.model == model)
        with self._begin() as connection:
            return connection.scalar(query) or 0

    def models(self) -> tuple[str, ...]:
        """Names of the models that have entries, sorted."""
        with self._begin() as connection:
            return tuple(sorted(filter(None, connection.scalars(sa.select(TABLE.c.model).distinct()))))

    def verify(self) -> list[str]:
        """Walk the chain from the first entry and say what is wrong with which; an empty list is a sound ledger.

        Entries cut off at the end leave a chain that is sound in itself: that is seen by the newest entry that this
        home remembers to have written.
        """
        faults: list[str] = []
        query = sa.select(TABLE).order_by(TABLE.c.sequence).execution_options(yield_per=1_000)
        with self._begin() as connection:
            sequence, previous, moment = 0, GENESIS, ""
            for row in connection.execute(query):
                faults += _faults(row, sequence + 1, previous, moment)
                sequence, previous, moment = row.sequence, row.hash, row.time
            return faults + self._cut_off(connection)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read what else the database holds, brought to this revision first."""
        with self._begin() as connection:
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
        """Where this home notes the newest entry that it wrote to this ledger."""
        # With its options: a schema of PostgreSQL is one of them.
        named = self._url.render_as_string(hide_password=True)
        return home_dir() / "anchors" / f"{hashlib.sha256(named.encode()).hexdigest()[:12]}.json"

    def _remember(self, entry: Entry) -> None:
        """Note the newest entry written from here, apart from the database, so that a shortened one is noticed."""
        if entry.sequence < self._remembered()[0]:
            return
        path = self._anchor
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({"ledger": self.shown, "sequence": entry.sequence, "hash": entry.hash}))
            draft.replace(path)
        except OSError:
            # The entry is written; a full disk must not make it look as if it were not.
            draft.unlink(missing_ok=True)

    def _remembered(self) -> tuple[int, str]:
        try:
            noted = json.loads(self._anchor.read_text())
            return int(noted["sequence"]), str(noted["hash"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, GENESIS

    def _cut_off(self, connection: sa.Connection) -> list[str]:
        """What this home wrote and the ledger does not have any more."""
        sequence, digest = self._remembered()
        found = connection.scalar(sa.select(TABLE.c.hash).where(TABLE.c.sequence == sequence)) if sequence else digest
        if found == digest:
            return []
        said = "is gone" if found is None else "is another one"
        return [f"entry {sequence}, which this home wrote last, {said} ({self._anchor.name} in anchors/ has its hash)"]

    def _entries(self, condition: sa.ColumnElement[bool]) -> list[Entry]:
        with self._begin() as connection:
            rows = connection.execute(sa.select(TABLE).where(condition).order_by(TABLE.c.sequence)).all()
        return [_entry(row) for row in rows]

    def _insert(self, connection: sa.Connection, fields: dict[str, Any], expect: int | Unset | None) -> Entry:
        # The tip is read first: whatever is read after it and was changed meanwhile makes the insert collide.
        query = sa.select(TABLE.c.sequence, TABLE.c.hash, TABLE.c.time).order_by(TABLE.c.sequence.desc()).limit(1)
        tip = connection.execute(query).first()
        champion = _champion(connection, fields["model"])
        if not isinstance(expect, Unset) and champion != expect:
            raise Conflict(
                f"the champion of '{fields['model']}' is {_named(champion)} now, but {_named(expect)} was judged "
                "against; nothing was changed: run it again"
            )
        if fields["action"] == "retire" and champion is not None and fields["version"] == champion:
            raise WorkError(f"v{champion} of '{fields['model']}' is the champion; put another in its place first")
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
    return os.environ.get("GAUNTLET_DATABASE") or f"sqlite:///{home_dir() / 'gauntlet.db'}"


def open_ledger() -> Ledger:
    """The ledger of this process's environment.

    Raises:
        ConfigError: `GAUNTLET_DATABASE` is no URL of SQLite or PostgreSQL.
    """
    return _opened(database_url())


@lru_cache(maxsize=8)
def _opened(url: str) -> Ledger:
    return Ledger(url)


def _parse_url(text: str) -> sa.URL:
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


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"connect_timeout": 10})
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": PATIENCE})

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


def _digest(row: Mapping[str, Any]) -> str:
    names = ("action", "actor", "model", "payload", "previous", "sequence", "time", "version", "why")
    return hashlib.sha256(canonical({name: row[name] for name in names}).encode()).hexdigest()


def _faults(row: sa.Row[Any], sequence: int, previous: str, moment: str) -> list[str]:
    """What is wrong with one entry, given what its predecessor demands."""
    faults = []
    if row.sequence != sequence:
        gap = f"{sequence}" if row.sequence == sequence + 1 else f"{sequence} to {row.sequence - 1}"
        faults.append(f"entry {gap}: missing")
    elif row.previous != previous:
        faults.append(f"entry {row.sequence}: does not follow the entry before it")
    if row.time < moment:
        faults.append(f"entry {row.sequence}: is dated before the entry before it")
    if row.hash != _digest(dict(row._mapping)):
        faults.append(f"entry {row.sequence}: was changed (its hash is another)")
    return faults


def _entry(row: sa.Row[Any] | Mapping[str, Any]) -> Entry:
    fields = dict(row if isinstance(row, Mapping) else row._mapping)
    fields["time"] = datetime.fromisoformat(fields["time"])
    fields["payload"] = json.loads(fields["payload"])
    return Entry(**fields)


def _stamp(moment: datetime) -> str:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _clean(text: str) -> str:
    """Text that both engines store: no NUL, no half of a surrogate pair."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _named(version: int | None) -> str:
    return "no version" if version is None else f"v{version}"
