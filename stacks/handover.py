"""The hand-over of a model from one champion to the next, by many processes that share only the ledger's database.

Every process that serves a model reports that it has the new champion loaded and warm. When all that live have (or a
minute after the first one), one of them writes down a moment that lies a little ahead, and each switches at it. So no
client meets the new version at one process and the old one at another for longer than their clocks differ.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from stacks.ledger import Entry, Ledger
from stacks.lifecycle import CROWNING, standing

EVERY_MODEL: Final = "*"
AHEAD_SECONDS: Final = 0.6
LATEST_SECONDS: Final = 60.0
BEAT_SECONDS: Final = 2.0
_LIVE_SECONDS: Final = 10.0
_FORGOTTEN_SECONDS: Final = 3_600.0

_METADATA: Final = sa.MetaData()
WORKERS: Final = sa.Table(
    "serving_workers",
    _METADATA,
    sa.Column("worker", sa.String(96), primary_key=True),
    sa.Column("host", sa.Text),
    sa.Column("pid", sa.Integer),
    sa.Column("models", sa.Text),
    sa.Column("seen", sa.Float(53)),
)
READY: Final = sa.Table(
    "serving_ready",
    _METADATA,
    sa.Column("worker", sa.String(96), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float(53)),
)
SWITCHES: Final = sa.Table(
    "serving_switches",
    _METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float(53)),
)


@dataclass(frozen=True)
class Crown:
    """A version that an entry of the ledger made champion, and where its Release lies.

    Attributes:
        model: Name of the model.
        version: Its number.
        sequence: Of the entry that made it champion.
        since: Time of that entry, in seconds since 1970.
        release_uri: Directory of the Release, for fsspec; None in entries from before services followed the ledger.
        manifest_sha256: Of the Release's manifest, which holds the sums of all its files.
    """

    model: str
    version: int
    sequence: int
    since: float
    release_uri: str | None
    manifest_sha256: str | None


@dataclass(frozen=True)
class Reign:
    """Who is champion of a model by the ledger.

    Attributes:
        champion: None where there is none.
        previous: The one that a rollback returns to.
        crowns: All there ever were, the newest first.
    """

    champion: Crown | None
    previous: Crown | None
    crowns: tuple[Crown, ...]

    def at(self, sequence: int | None) -> Crown | None:
        """The crown that an entry gave."""
        return next((crown for crown in self.crowns if crown.sequence == sequence), None)


def reign_of(history: Sequence[Entry]) -> Reign:
    """Read the champions of a model off its entries, oldest first."""
    named = ("release_uri", "manifest_sha256")
    placed = {e.version: tuple(e.payload[name] for name in named) for e in history if e.payload.get("release_uri")}
    crowns = tuple(
        Crown(
            entry.model, entry.version, entry.sequence, entry.time.timestamp(), *placed.get(entry.version, (None, None))
        )
        for entry in reversed(history)
        if entry.action in CROWNING and entry.version is not None
    )
    stands = standing(history)
    newest = {crown.version: crown for crown in reversed(crowns)}
    return Reign(newest.get(stands.champion), newest.get(stands.previous), crowns)  # type: ignore[arg-type]


class Handover:
    """One serving process's part in all hand-overs."""

    def __init__(self, ledger: Ledger, models: Collection[str] = (), clock: Callable[[], float] = time.time) -> None:
        """Take part for some models.

        Args:
            ledger: Whose database; best one that keeps its connection.
            models: Names; empty for every model of the ledger.
            clock: Seconds since the epoch, which machines that share the database agree about.
        """
        self._ledger = ledger
        self._clock = clock
        self._host = socket.gethostname()
        self._models = sorted(models) or [EVERY_MODEL]
        self._beaten = 0.0
        self.worker = f"{self._host[:60]}:{os.getpid()}:{secrets.token_hex(4)}"

    def beat(self) -> None:
        """Say that this process lives, every two seconds at most."""
        now = self._clock()
        if now - self._beaten < BEAT_SECONDS:
            return
        row = {"host": self._host, "pid": os.getpid(), "models": json.dumps(self._models), "seen": now}
        with self._ledger.writing() as connection:
            mine = WORKERS.c.worker == self.worker
            if connection.execute(WORKERS.update().where(mine).values(row)).rowcount == 0:
                old = sa.select(WORKERS.c.worker).where(WORKERS.c.seen < now - _FORGOTTEN_SECONDS)
                connection.execute(READY.delete().where(READY.c.worker.in_(old)))
                connection.execute(WORKERS.delete().where(WORKERS.c.seen < now - _FORGOTTEN_SECONDS))
                connection.execute(WORKERS.insert().values(worker=self.worker, **row))
        self._beaten = now

    def leave(self) -> None:
        """Take no part any more; nobody waits for this process."""
        with self._ledger.writing() as connection:
            for table in (READY, WORKERS):
                connection.execute(table.delete().where(table.c.worker == self.worker))

    def ready(self, crown: Crown) -> None:
        """Report that this process has a version loaded and warm."""
        row = {"worker": self.worker, "model": crown.model, "sequence": crown.sequence, "at": self._clock()}
        with self._ledger.writing() as connection:
            _insert_if_absent(connection, READY, row)

    def decide(self, crown: Crown) -> float | None:
        """When all switch to a version: as written down, else written down now if it is time; None if it is not."""
        with self._ledger.reading() as connection:
            if (at := _switch(connection, crown)) is not None:
                return at
            if not self._due(connection, crown):
                return None
        row = {"model": crown.model, "sequence": crown.sequence, "at": self._clock() + AHEAD_SECONDS}
        with self._ledger.writing() as connection:
            _insert_if_absent(connection, SWITCHES, row)
            return _switch(connection, crown)

    def switched(self, model: str) -> int | None:
        """Sequence of the newest entry that all have been told to switch to, if any."""
        query = sa.select(sa.func.max(SWITCHES.c.sequence)).where(
            SWITCHES.c.model == model, SWITCHES.c.at <= self._clock()
        )
        with self._ledger.reading() as connection:
            return connection.scalar(query)

    def others(self, model: str) -> bool:
        """Whether another process that lives serves a model."""
        with self._ledger.reading() as connection:
            return bool(self._live(connection, model) - {self.worker})

    def _due(self, connection: sa.Connection, crown: Crown) -> bool:
        named = (READY.c.model == crown.model, READY.c.sequence == crown.sequence)
        ready = {row.worker: row.at for row in connection.execute(sa.select(READY.c.worker, READY.c.at).where(*named))}
        if not ready:
            return False
        return self._live(connection, crown.model) <= ready.keys() or (
            self._clock() - min(ready.values()) >= LATEST_SECONDS
        )

    def _live(self, connection: sa.Connection, model: str) -> set[str]:
        """The processes that serve a model and live: seen lately, and where they ran on this machine still there."""
        query = sa.select(WORKERS).where(WORKERS.c.seen > self._clock() - _LIVE_SECONDS)
        return {
            row.worker
            for row in connection.execute(query)
            if {EVERY_MODEL, model} & set(json.loads(row.models)) and (row.host != self._host or _is_running(row.pid))
        }


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _switch(connection: sa.Connection, crown: Crown) -> float | None:
    named = (SWITCHES.c.model == crown.model, SWITCHES.c.sequence == crown.sequence)
    return connection.scalar(sa.select(SWITCHES.c.at).where(*named))


def _insert_if_absent(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    from sqlalchemy.dialects import postgresql, sqlite

    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert
    connection.execute(insert(table).values(row).on_conflict_do_nothing())
