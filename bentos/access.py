"""Who is answered: access keys, their roles and rates, around everything that the service and BentoML itself answer.

While no key was made, only clients on this machine are answered; from the first key on, everybody shows one. Rates are
counted by each worker process for itself: a service with n workers lets up to n times a key's rate through.
"""

import ipaddress
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from bentos.reply import Reply
from models.errors import ConfigError
from stacks.home import home_dir

if TYPE_CHECKING:
    from stacks.keys import Key, KeyReader, KeyRing

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("gauntlet.access")

EVERY_SECONDS: Final = 1.0
HOW: Final = "gauntlet key add NAME --role predict"
_ALWAYS: Final = ("/livez", "/readyz")
_ANY_ROLE: Final = ("/health", "/metrics")
_ROUTE: Final = re.compile(r"(?:/models/[^/]+)?/(predict|outcomes)(?:/.*)?", re.DOTALL)
_FORWARDED: Final = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
_UNFIT: Final[Mapping[str, str]] = {
    "unknown_key": "the key is none of this service's",
    "expired_key": "the key has expired",
    "revoked_key": "the key was revoked",
}


@dataclass(frozen=True)
class Denial:
    """Why a request is not answered.

    Attributes:
        status: 401, 403, 429 or 503.
        reason: One word for it; the counter's label.
        said: What the caller is told.
        key: Name of the key that was shown, where it is known.
        retry_after: Seconds, where waiting helps.
    """

    status: int
    reason: str
    said: str
    key: str | None = None
    retry_after: int | None = None

    def reply(self) -> Reply:
        """The answer, in the form of all refusals; it repeats nothing of the request."""
        place = ["header", "authorization"] if self.status == 401 or self.key else []
        detail = [{"loc": place, "msg": self.said, "type": self.reason}]
        demand = ((b"www-authenticate", b"Bearer"),) if self.status == 401 else ()
        body = json.dumps({"detail": detail}).encode()
        return Reply(self.status, body, self.retry_after, self.reason, extra=demand)


@dataclass
class Bucket:
    """What is left of a key's rate: `tokens` at time `at`, refilled evenly up to a minute's worth."""

    tokens: float
    at: float

    def take(self, rate: int, now: float) -> float:
        """Take one token; seconds to wait until there is one, 0 when there was."""
        self.tokens = min(float(rate), self.tokens + (now - self.at) * rate / 60)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) * 60 / rate
        self.tokens -= 1
        return 0.0


class Access:
    """Decides who is answered. One object a process; the keys are re-read every second once `watch` was called."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read nothing yet.

        Args:
            clock: Seconds that never fall, for rates and for the age of what was read.
            now: The time of day, for expiry.
        """
        self._clock = clock
        self._now = now
        self._reader: KeyReader | None = None
        self._looked = False
        self._fault: str | None = None
        self._buckets: dict[str, Bucket] = {}

    def refresh(self) -> None:
        """Read the keys again, where there is a database by now; without one nothing of it is imported."""
        fault: str | None = None
        try:
            reader = self._reader
            if reader is None and has_database():
                from stacks.keys import KeyReader

                reader = KeyReader(clock=self._clock)
            if reader:
                reader.refresh()
                # Only now: a request in between would find a reader that has read nothing.
                self._reader, fault = reader, reader.fault
        except ImportError as error:
            fault = f"the access keys cannot be read: {error.name} is not installed"
        self._looked = True
        if fault and not self._fault:
            log.error("%s; those read last hold for a minute", fault)
        elif self._fault and not fault:
            log.info("the access keys can be read again")
        self._fault = fault

    def watch(self) -> None:
        """Read the keys now, and again every second for as long as this process lives."""
        self.refresh()
        threading.Thread(target=self._follow, name="gauntlet-keys", daemon=True).start()

    def refuse_address(self, host: str) -> None:
        """Refuse to listen where other machines reach, unless there is a key.

        Raises:
            ConfigError: There is none, or the keys cannot be read.
        """
        if is_loopback(host):
            return
        self.refresh()
        if self._fault:
            raise ConfigError(f"{host} is reached by other machines, which need keys, and {self._fault}")
        ring = self._ring()
        if ring is None or not ring.usable(self._now()):
            raise ConfigError(
                f"{host} is reached by other machines, and there is no access key they could show; make one: "
                f"{HOW} (or leave --host out: then only this machine is answered)"
            )

    def judge(self, scope: Scope) -> Denial | None:
        """Why a request is not answered; None when it is."""
        path = scope["path"]
        if path in _ALWAYS:
            return None
        local = is_local(scope)
        if path == "/metrics" and local:
            return None
        if not self._looked:
            self.refresh()
        ring = self._ring()
        if ring is None and (self._reader or self._fault):
            return Denial(503, "keys_away", "the access keys cannot be read just now", retry_after=5)
        presented = presented_key(scope)
        if ring is None or not ring.demands():
            return self._without_keys(ring, presented, local)
        if not presented:
            return Denial(401, "no_key", "show a key: Authorization: Bearer gk_…, or X-API-Key")
        found = ring.check(presented, self._now())
        if isinstance(found, str):
            return Denial(401, found, _UNFIT[found])
        scope["gauntlet.key"] = found.name
        return self._too_often(found) or _not_allowed(found, path)

    def _without_keys(self, ring: "KeyRing | None", presented: str, local: bool) -> Denial | None:
        if not local:
            return Denial(403, "not_local", f"only this machine is answered while there is no key; make one: {HOW}")
        if not presented.startswith("gk_"):
            return None
        # Whoever shows a key means it: the last one, revoked, must not go on opening what needs none any more.
        found = ring.check(presented, self._now()) if ring else "unknown_key"
        return Denial(401, found, _UNFIT[found]) if isinstance(found, str) else None

    def _too_often(self, key: "Key") -> Denial | None:
        if key.rate is None:
            return None
        now = self._clock()
        wait = self._buckets.setdefault(key.prefix, Bucket(float(key.rate), now)).take(key.rate, now)
        if not wait:
            return None
        said = f"more than {key.rate} requests a minute with this key"
        return Denial(429, "rate", said, key.name, retry_after=max(1, math.ceil(wait)))

    def _ring(self) -> "KeyRing | None":
        return self._reader.ring() if self._reader else None

    def _follow(self) -> None:
        while True:
            time.sleep(EVERY_SECONDS)
            self.refresh()


def has_database() -> bool:
    """Whether there is a database that may hold keys: `GAUNTLET_DATABASE`, else `gauntlet.db` in the home."""
    return bool(os.environ.get("GAUNTLET_DATABASE")) or (home_dir() / "gauntlet.db").is_file()


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine: from its loopback, and not handed on by a proxy there."""
    host = (scope.get("client") or ("",))[0]
    return is_loopback(host) and not any(name in _FORWARDED for name, _ in scope["headers"])


@lru_cache(maxsize=1_024)
def is_loopback(host: str) -> bool:
    """Whether an IP address is of the loopback; a name is not."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def presented_key(scope: Scope) -> str:
    """The key of `Authorization: Bearer`, else of `X-API-Key`; "" when there is neither."""
    headers: dict[bytes, str] = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
    scheme, _, credentials = headers.get(b"authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key", "").strip()


def _not_allowed(key: "Key", path: str) -> Denial | None:
    match = _ROUTE.fullmatch(path)
    wanted = "outcome" if match and match[1] == "outcomes" else "predict"
    if key.role in (wanted, "admin") or path in _ANY_ROLE:
        return None
    return Denial(403, "role", f"this takes a key of the role {wanted} or admin; this key's is {key.role}", key.name)
