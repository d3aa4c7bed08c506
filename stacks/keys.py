"""Access keys: who may ask the served models, kept as salted hashes in the ledger's database.

A key is `gk_<8 characters>_<43 characters>`. The first 11 characters are public: they name its row. The rest is 256
random bits, of which nothing is stored but a SHA-256 under a salt of the row: there is no guessing them, so a slow hash
(scrypt) would protect nothing and cost every request its time.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa

from models.errors import ConfigError, GauntletError, guess
from stacks.ledger import Ledger, database_url, open_ledger

Role = Literal["predict", "outcome", "admin"]
State = Literal["active", "expired", "revoked"]
Unfit = Literal["unknown_key", "expired_key", "revoked_key"]

ROLES: Final[tuple[str, ...]] = get_args(Role)
RATE: Final = 6_000
PREFIX_LENGTH: Final = 11
FRESH_SECONDS: Final = 1.0
STALE_SECONDS: Final = 60.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_LONGEST: Final = 128
_UNFIT: Final[Mapping[Unfit, str]] = {
    "unknown_key": "there is no such key in this database",
    "expired_key": "that key has expired",
    "revoked_key": "that key was revoked",
}

TABLE: Final = sa.Table(
    "access_keys",
    sa.MetaData(),
    sa.Column("prefix", sa.String(PREFIX_LENGTH), primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("role", sa.Text),
    sa.Column("salt", sa.String(32)),
    sa.Column("hash", sa.String(64)),
    sa.Column("created", sa.String(32)),
    sa.Column("expires", sa.String(32)),
    sa.Column("revoked", sa.String(32)),
    sa.Column("rate", sa.Integer),
)


@dataclass(frozen=True)
class Key:
    """What may be known of a key.

    Attributes:
        prefix: Its public beginning.
        name: What a person calls it; of the keys that are not revoked, no two share one.
        role: What it opens; `admin` opens everything.
        created: When it was made.
        expires: When it ends by itself; None: never.
        revoked: When it was revoked.
        rate: Requests a minute, per worker of a service; None: as many as come.
    """

    prefix: str
    name: str
    role: Role
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    rate: int | None

    def state(self, now: datetime) -> State:
        """Whether it opens anything at `now`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


def add(
    name: str,
    role: str,
    *,
    valid_for: timedelta | None = None,
    rate: int | None = RATE,
    why: str = "",
    ledger: Ledger | None = None,
) -> tuple[Key, str]:
    """Make a key: its row and the ledger's entry in one transaction.

    Args:
        name: What to call it.
        role: `predict`, `outcome` or `admin`.
        valid_for: How long; None: until it is revoked.
        rate: Requests a minute; None for no limit.
        why: The reason, for the ledger.
        ledger: Whose database; the environment's when left out.

    Returns:
        What may be known of it, and the key itself, which is nowhere else.

    Raises:
        ConfigError: There is no such role, the name is none, or a key bears it.
        WorkError: The database cannot be used.
    """
    if role not in ROLES:
        raise ConfigError(f"'{role[:40]}' is no role{guess(role[:40], ROLES)}")
    if not _NAME.fullmatch(name) or name.startswith("gk_"):
        raise ConfigError(
            "that is no name for a key: up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    prefix = "gk_" + "".join(secrets.choice(_ALPHABET) for _ in range(PREFIX_LENGTH - 3))
    secret = f"{prefix}_{secrets.token_urlsafe(32)}"
    salt = secrets.token_hex(16)
    created = datetime.now(UTC)
    key = Key(prefix, name, role, created, created + valid_for if valid_for else None, None, rate)  # type: ignore[arg-type]
    row: dict[str, Any] = {**asdict(key), "salt": salt, "hash": _digest(salt, secret)}
    row |= {field: _stamp(row[field]) for field in ("created", "expires")}

    def insert(connection: sa.Connection) -> None:
        taken = sa.select(TABLE.c.prefix).where(TABLE.c.name == name, TABLE.c.revoked.is_(None))
        if connection.scalar(taken) is not None:
            raise ConfigError(f"there is a key '{name}'; choose another name, or first: gauntlet key revoke {name}")
        connection.execute(TABLE.insert().values(row))

    _record(ledger or open_ledger(), "added", key, why, insert)
    return key, secret


def revoke(named: str, *, why: str = "", ledger: Ledger | None = None) -> Key:
    """End a key: its row and the ledger's entry in one transaction.

    Args:
        named: Its name, or its public beginning; of a whole key only that is looked at.
        why: The reason, for the ledger.
        ledger: Whose database; the environment's when left out.

    Raises:
        ConfigError: No key that is not revoked has that name.
        WorkError: The database cannot be used.
    """
    ledger = ledger or open_ledger()
    wanted = named[:PREFIX_LENGTH] if named.startswith("gk_") else named[:64]
    standing = {key.name: key for key in listing(ledger) if key.revoked is None}
    found = [key for key in standing.values() if wanted in (key.name, key.prefix)]
    if not found:
        raise ConfigError(f"there is no key '{wanted}' to revoke{guess(wanted, sorted(standing))}")
    moment = datetime.now(UTC)
    key = replace(found[0], revoked=moment)

    def update(connection: sa.Connection) -> None:
        row = TABLE.update().where(TABLE.c.prefix == key.prefix, TABLE.c.revoked.is_(None))
        if connection.execute(row.values(revoked=_stamp(moment))).rowcount == 0:
            raise ConfigError(f"the key '{key.name}' was revoked a moment ago")

    _record(ledger, "revoked", key, why, update)
    return key


def listing(ledger: Ledger | None = None) -> tuple[Key, ...]:
    """All keys there ever were, oldest first.

    Raises:
        WorkError: The database cannot be used.
    """
    with (ledger or open_ledger()).reading() as connection:
        return tuple(_key(row) for row in connection.execute(sa.select(TABLE).order_by(TABLE.c.created)))


def actor_of(presented: str, ledger: Ledger | None = None) -> str:
    """The actor that a key stands for: `key:<its name>`.

    Args:
        presented: The whole key.
        ledger: Whose database; the environment's when left out.

    Raises:
        ConfigError: It is no key of this database, holds no more, or does not open what an admin may do.
        WorkError: The database cannot be used.
    """
    with (ledger or open_ledger()).reading() as connection:
        rows = {row.prefix: (_key(row), row.salt, row.hash) for row in connection.execute(sa.select(TABLE))}
    found = KeyRing(rows).check(presented, datetime.now(UTC))
    if not isinstance(found, Key):
        cure = "set it to an admin's key (`gauntlet key add NAME --role admin` makes one), or unset it"
        raise ConfigError(f"GAUNTLET_KEY: {_UNFIT[found]}; nothing was done: {cure}")
    if found.role != "admin":
        raise ConfigError(
            f"GAUNTLET_KEY: the key '{found.name}' has the role {found.role}; this needs an admin's; nothing was done"
        )
    return f"key:{found.name}"


class KeyRing:
    """The keys as they were at one moment, with what it takes to recognise them."""

    def __init__(self, rows: Mapping[str, tuple[Key, str, str]]) -> None:
        """Keep rows by prefix: the key, its salt, its hash."""
        self._rows = rows
        self._nobody = (secrets.token_hex(16), secrets.token_hex(32))

    def demands(self) -> bool:
        """Whether a key must be shown: one was made and not revoked. An expired one does not open what it closed."""
        return any(key.revoked is None for key, _, _ in self._rows.values())

    def usable(self, now: datetime) -> bool:
        """Whether any key opens anything."""
        return any(key.state(now) == "active" for key, _, _ in self._rows.values())

    def check(self, presented: str, now: datetime) -> Key | Unfit:
        """The key that was presented, or why it is none; takes as long for an unknown prefix as for a wrong secret."""
        row = self._rows.get(presented[:PREFIX_LENGTH])
        salt, digest = row[1:] if row else self._nobody
        same = hmac.compare_digest(_digest(salt, presented[:_LONGEST]), digest)
        if row is None or not same or len(presented) > _LONGEST:
            return "unknown_key"
        state = row[0].state(now)
        if state == "active":
            return row[0]
        return "expired_key" if state == "expired" else "revoked_key"


class KeyReader:
    """Reads the keys for a service: never more than once a second, and never writes.

    What was read last goes on holding for a minute when the database is away.
    """

    def __init__(self, url: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Name the database, by default the environment's.

        Args:
            url: As `Ledger` takes it.
            clock: Seconds that never fall.
        """
        self._url = url
        self._clock = clock
        self._ledger: Ledger | None = None
        self._has_table = False
        self._tried: float | None = None
        self._last: tuple[float, KeyRing] | None = None
        self.fault: str | None = None

    def ring(self) -> KeyRing | None:
        """The keys as last read; None when that is over a minute ago, or never was."""
        last = self._last
        return last[1] if last and self._clock() - last[0] <= STALE_SECONDS else None

    def refresh(self) -> None:
        """Read the keys again, unless that was tried less than a second ago; `fault` says why it could not be done."""
        now = self._clock()
        if self._tried is not None and now - self._tried < FRESH_SECONDS:
            return
        self._tried = now
        try:
            ring = KeyRing(self._rows())
        except GauntletError as error:
            self.fault = str(error)
        except (sa.exc.SQLAlchemyError, OSError, ImportError, ValueError) as error:
            self.fault = f"the access keys cannot be read: {type(error).__name__}"
        else:
            # Dated before the read: what was revoked during it is not taken for known.
            self._last, self.fault = (now, ring), None

    def _rows(self) -> dict[str, tuple[Key, str, str]]:
        self._ledger = self._ledger or Ledger(self._url or database_url())
        with self._ledger.peeking() as connection:
            if connection is None:
                return self._none()
            if not self._has_table and not sa.inspect(connection).has_table(TABLE.name):
                return self._none()
            self._has_table = True
            return {row.prefix: (_key(row), row.salt, row.hash) for row in connection.execute(sa.select(TABLE))}

    def _none(self) -> dict[str, tuple[Key, str, str]]:
        if self._has_table:
            # Keys that were there a moment ago are not gone because their file is.
            raise FileNotFoundError
        return {}


def _record(ledger: Ledger, change: str, key: Key, why: str, alongside: Callable[[sa.Connection], None]) -> None:
    facts: dict[str, Any] = {"change": change, "name": key.name, "prefix": key.prefix, "role": key.role}
    facts |= {"expires": _stamp(key.expires), "rate": key.rate}
    ledger.append("key", "", None, why=why, payload=facts, alongside=alongside)


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode("utf-8", "replace")).hexdigest()


def _key(row: sa.Row[Any]) -> Key:
    times = {name: getattr(row, name) for name in ("created", "expires", "revoked")}
    parsed = {name: datetime.fromisoformat(text) if text else None for name, text in times.items()}
    return Key(prefix=row.prefix, name=row.name, role=row.role, rate=row.rate, **parsed)  # type: ignore[arg-type]


def _stamp(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="microseconds") if moment else None
