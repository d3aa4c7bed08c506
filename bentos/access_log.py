"""The access log: one line of JSON a request, collected and written together, so that no answer waits for it.

`GAUNTLET_ACCESS_LOG` says where to: a file, `off`, or `-` for stderr, which is what it is without. A line holds nothing
of a request's content, query or headers; of its client it has the network only. What was collected in the last tenth of
a second is lost with a killed process.
"""

import atexit
import ipaddress
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from opentelemetry import trace

from models.errors import ConfigError, shown

log = logging.getLogger("gauntlet.access_log")

VARIABLE: Final = "GAUNTLET_ACCESS_LOG"
EVERY_SECONDS: Final = 0.1
TOGETHER: Final = 256
WAITING: Final = 10_000
_PIPE: Final = 4_096
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
_MODEL_ROUTE: Final = re.compile(
    r"(?:/models/[^/]+)?(/predict|/predict/batch|/outcomes|/health|/monitoring/summary)", re.DOTALL
)
_ROUTES: Final = frozenset(
    ("/", "/livez", "/readyz", "/healthz", "/metrics", "/models", "/dashboard", "/docs.json", "/openapi.json")
)
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.DOTALL)


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line, as a log of ours begins: time, level, logger; then what was asked and what came of it.

    Attributes:
        time: ISO 8601, UTC, milliseconds.
        level: INFO, as in the other logs.
        logger: Names this log among them.
        method: Of HTTP; OTHER for one that is none.
        route: The path, where it is one of the service's, without the model's name.
        status: Of the answer.
        refusal: One word for why there was no other.
        milliseconds: From the request's arrival to its answer.
        bytes: Of the answer's body.
        key: Name of the access key, "-" without.
        client: Network of the client: /24, IPv6 /48.
        model: Who answered, where one did.
        version: Of the Release that answered.
        trace: 32 hex digits of the OpenTelemetry trace.
    """

    time: str
    level: str
    logger: str
    method: str
    route: str
    status: int
    refusal: str | None
    milliseconds: float
    bytes: int
    key: str
    client: str
    model: str | None
    version: int | None
    trace: str | None


class AccessLog:
    """Collects lines, and writes those of a tenth of a second, or 256, in one go. One object a process."""

    def __init__(self, target: str = "-") -> None:
        """Open the file, where it is one; the thread that writes starts with the first line.

        Args:
            target: A path, "-" for stderr, "off" for nowhere.

        Raises:
            ConfigError: The file cannot be opened.
        """
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._dropped = 0
        self._fault = ""
        self._full = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        try:
            self._sink = None if target == "off" else _Stderr() if target == "-" else _File(Path(target))
        except OSError as error:
            raise ConfigError(
                f"the access log {shown(target)} cannot be opened ({error.strerror}); name another file by {VARIABLE}, "
                "or `-` for stderr, or `off`"
            ) from None

    def note(
        self,
        *,
        method: str,
        route: str,
        status: int,
        seconds: float,
        size: int,
        refusal: str | None = None,
        client: str = "",
        key: str | None = None,
        model: str | None = None,
        version: int | None = None,
        trace: str | None = None,
    ) -> None:
        """Take down one request; it is written soon. More than 10,000 that wait are dropped, which the log says.

        Args:
            method: Of HTTP.
            route: As `route_of` gives it: never what a caller wrote.
            status: Of the answer.
            seconds: From the request's arrival to its answer.
            size: Bytes of the answer's body.
            refusal: One word for why there was no other answer.
            client: Address; only its network is written.
            key: Name of the access key.
            model: Who answered.
            version: Of the Release that answered.
            trace: Of `trace_id`.
        """
        if self._sink is None:
            return
        if len(self._waiting) >= WAITING:
            self._dropped += 1
            return
        entry = (time.time(), method, route, status, refusal, seconds, size, client, key, model, version, trace)
        self._waiting.append(entry)
        if self._thread is None:
            self._start()
        elif len(self._waiting) == TOGETHER:
            self._full.set()

    def flush(self) -> None:
        """Write what waits; what cannot be written is dropped."""
        with self._writing:
            taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._sink is None or not taken:
                return
            fault = ""
            try:
                self._sink.write([_encoded(*entry) for entry in taken])
            except OSError as error:
                self._dropped += len(taken)
                fault = f"the access log cannot be written ({error.strerror})"
            if fault and not self._fault:
                log.error("%s; its lines are dropped", fault)
            elif self._dropped and not fault:
                log.warning("%d lines of the access log were dropped", self._dropped)
                self._dropped = 0
            self._fault = fault

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._follow, name="gauntlet-access-log", daemon=True)
        self._thread.start()
        atexit.register(self.flush)

    def _follow(self) -> None:
        while True:
            self._full.wait(EVERY_SECONDS)
            self._full.clear()
            self.flush()


@lru_cache(maxsize=1)
def access_log() -> AccessLog:
    """This worker's access log, as `GAUNTLET_ACCESS_LOG` wants it.

    Raises:
        ConfigError: Its file cannot be opened.
    """
    return AccessLog(os.environ.get(VARIABLE) or "-")


def route_of(path: str) -> str:
    """A path as it may be logged and counted: one of the service's routes, without the model's name, or "other"."""
    match = _MODEL_ROUTE.fullmatch(path)
    return match[1] if match else path if path in _ROUTES else "other"


def trace_id(scope: MutableMapping[str, Any]) -> str | None:
    """The trace that a request belongs to, as 32 hex digits.

    BentoML's middleware gives each request a span, whether it is sampled or not, which goes on with the caller's trace;
    where that middleware is off, the caller's `traceparent` header says it.

    Args:
        scope: Of ASGI.

    Returns:
        None where neither knows one.
    """
    known = trace.get_current_span().get_span_context().trace_id
    if known:
        return f"{known:032x}"
    for name, value in scope["headers"]:
        if name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value)
            return match[1].decode() if match else None
    return None


@lru_cache(maxsize=1_024)
def network_of(client: str) -> str:
    """The network of an address, which tells callers apart but no person: /24, for IPv6 /48; "-" for a name."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return "-"
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ipaddress.ip_network((int(address), 24 if address.version == 4 else 48), strict=False))


class _Stderr:
    """What the process says, in pieces that a pipe takes whole: lines of several workers must not mix."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Write whole lines."""
        piece = b""
        for line in lines:
            if piece and len(piece) + len(line) > _PIPE:
                _write(sys.stderr.fileno(), piece)
                piece = b""
            piece += line
        _write(sys.stderr.fileno(), piece)


class _File:
    """A file that several processes append to, opened anew once it was moved away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()

    def write(self, lines: Sequence[bytes]) -> None:
        """Write whole lines in one go."""
        if self._moved():
            os.close(self._descriptor)
            self._descriptor = self._open()
        _write(self._descriptor, b"".join(lines))

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return True


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _encoded(
    at: float,
    method: str,
    route: str,
    status: int,
    refusal: str | None,
    seconds: float,
    size: int,
    client: str,
    key: str | None,
    *of: Any,
) -> bytes:
    line = Line(
        datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        "INFO",
        log.name,
        method if method in _METHODS else "OTHER",
        route,
        status,
        refusal,
        round(seconds * 1_000, 3),
        size,
        key or "-",
        network_of(client),
        *of,
    )
    return msgspec.json.encode(line) + b"\n"
