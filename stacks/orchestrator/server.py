"""One Prefect server per Prefect home: found, or started for as long as somebody uses it.

A server that we start holds a lock file for its whole life, so a home never has two of them. Everyone who uses it
holds a connection to it (a lease); the kernel closes these when a process ends in whatever way, and the server ends
itself with the last one. What it writes is the home's own database, the same that `prefect server start` shows.
"""

import atexit
import contextlib
import errno
import http.client
import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import uvicorn

ASK_SECONDS = 5.0
START_SECONDS = 180.0
DRAIN_SECONDS = 10.0
STOP_SECONDS = 3.0
TAKEN = 75
ACKNOWLEDGED = b"gauntlet\n"


class ServerError(RuntimeError):
    """No Prefect server could be reached or started; the text says why and what to do."""


def configured_url(prefect_home: Path) -> str | None:
    """The API address that the user chose: `PREFECT_API_URL`, else the active profile of the home."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    try:
        profiles = tomllib.loads((prefect_home / "profiles.toml").read_text())
    except (OSError, ValueError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def without_credentials(url: str) -> str:
    """A URL for messages and records: without user and password, and without a slash at its end."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def lasting_address(prefect_home: Path, url: str | None) -> str:
    """What the server of a run is recognised by later: its address, or its home, whose own server's port changes."""
    from stacks.orchestrator.announcement import announced_url

    home = prefect_home.absolute()
    record = _Record.read(home)
    own = (None, record.url if record else None, announced_url(home))
    return str(home) if url in own else without_credentials(str(url))


def require_answer(prefect_home: Path, seconds: float = 5.0) -> None:
    """Make sure that the API that the user configured, if any, is there; any answer will do, also a refusal.

    Raises:
        ServerError: Nothing answers at its address.
    """
    from stacks.orchestrator.announcement import withdraw_dead

    withdraw_dead(prefect_home.absolute())
    if (url := configured_url(prefect_home)) is None:
        return
    bare = without_credentials(url)
    # No proxy for the loopback; a gateway that cannot reach the server is no answer of the server.
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        opener.open(f"{bare}/health", timeout=seconds).close()
        return
    except urllib.error.HTTPError as error:
        if error.code not in (502, 503, 504):
            return
        reason: object = f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            return  # somebody is there; what to make of the certificate is Prefect's business
        reason = getattr(cause, "strerror", None) or type(cause).__name__
    raise ServerError(
        f"PREFECT_API_URL={bare[:300]} does not answer ({reason}): start that server, or unset the variable "
        "(`prefect config unset PREFECT_API_URL` where a profile sets it) to use this home's own"
    )


def ensure_server(prefect_home: Path) -> str:
    """Return the API address of a server of `prefect_home`, starting one if there is none.

    What the user configured or started (`PREFECT_API_URL`, `prefect server start`) is taken as it is. A server that we
    start stays until this process and all others that asked for it have ended, also by `kill -9`.

    Raises:
        ServerError: The server did not start; the message names its log.
    """
    return start_server(prefect_home).wait()


def start_server(prefect_home: Path) -> "PendingServer":
    """Like `ensure_server`, but return at once, so that the caller can do other things while it starts."""
    home = prefect_home.absolute()
    pending = PendingServer(home)
    pending.begin()
    return pending


def public_url(prefect_home: Path, api_url: str) -> str:
    """Where a person looks at runs: the server's own address, or that of `prefect server start` when we started it."""
    record = _Record.read(prefect_home.absolute())
    if record and record.url == api_url:
        return _user_server()
    return api_url.removesuffix("/").removesuffix("/api")


@dataclass(frozen=True)
class _Record:
    """What a running server of ours says of itself."""

    url: str
    pid: int
    lease_port: int

    @staticmethod
    def path(home: Path) -> Path:
        return home / "gauntlet-server.json"

    @classmethod
    def read(cls, home: Path) -> "_Record | None":
        try:
            data = json.loads(cls.path(home).read_text())
            return cls(str(data["url"]), int(data["pid"]), int(data["lease_port"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, home: Path) -> None:
        draft = self.path(home).with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(self.__dict__))
        draft.replace(self.path(home))


@dataclass
class _Held:
    """This process's hold on a server of ours."""

    url: str
    lease: socket.socket
    owner: int
    child: "subprocess.Popen[bytes] | None" = None

    def alive(self) -> bool:
        if self.owner != os.getpid():
            return False
        try:
            return self.lease.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def let_go(self) -> None:
        """Drop the lease; when we started the server and nobody else uses it, see it off."""
        if self.owner != os.getpid():
            return
        self.lease.close()
        if self.child and self.child.stdin:
            self.child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(STOP_SECONDS)


_held: dict[Path, _Held] = {}
_guard = threading.RLock()


class PendingServer:
    """A server that was found or is starting; `wait` gives its address."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._url: str | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Look for a server; start one when there is none. Does not wait for it."""
        with _guard:
            self._url = self._find()
            if self._url is None:
                self._child = _spawn(self._home)

    def wait(self) -> str:
        """Return the API address once the server answers.

        Raises:
            ServerError: It ended or did not answer in time.
        """
        deadline = time.monotonic() + START_SECONDS
        with _guard:
            while self._url is None:
                self._url = self._lease()
                if self._url is None:
                    self._check_child(deadline)
                    time.sleep(0.01)
        return self._url

    def _find(self) -> str | None:
        # Not at the top: the server itself runs this file by its path.
        from stacks.orchestrator.announcement import withdraw_dead

        withdraw_dead(self._home)
        if url := configured_url(self._home):
            return url
        if (held := _held.get(self._home)) and held.alive():
            return held.url
        return self._lease() or _started_by_user(self._home)

    def _lease(self) -> str | None:
        """Take hold of the recorded server, if it still takes anyone."""
        record = _Record.read(self._home)
        if record is None:
            return None
        try:
            lease = socket.create_connection(("127.0.0.1", record.lease_port), timeout=2)
            if lease.recv(len(ACKNOWLEDGED)) != ACKNOWLEDGED:
                lease.close()
                return None
        except OSError:
            return None
        lease.setblocking(False)
        child = self._child if self._child and self._child.pid == record.pid else None
        held = _Held(record.url, lease, os.getpid(), child)
        _held[self._home] = held
        atexit.register(held.let_go)
        return record.url

    def _check_child(self, deadline: float) -> None:
        code = self._child.poll() if self._child else TAKEN
        if code not in (None, TAKEN):
            raise ServerError(f"the Prefect server ended with code {code} while it started.\n{_log_tail(self._home)}")
        if time.monotonic() > deadline:
            if self._child and self._child.stdin:
                self._child.stdin.close()
            raise ServerError(f"the Prefect server did not start in {START_SECONDS:.0f} s.\n{_log_tail(self._home)}")
        if code == TAKEN:
            # Another process starts one, or the last one is about to be gone.
            time.sleep(0.05)
            self._child = None if _Record.read(self._home) and self._lease() else _spawn(self._home)


def _user_server() -> str:
    return f"http://127.0.0.1:{os.environ.get('PREFECT_SERVER_API_PORT', '4200')}"


def _started_by_user(home: Path) -> str | None:
    """The address of `prefect server start` when it runs on its usual port and serves this home."""
    try:
        # No proxy: this is the loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{_user_server()}/api/admin/settings", timeout=ASK_SECONDS) as answer:
            served = json.load(answer)["home"]
        return f"{_user_server()}/api" if Path(served).resolve() == home.resolve() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log_path(home: Path) -> Path:
    return home / "gauntlet-server.log"


def _log_tail(home: Path) -> str:
    try:
        tail = _log_path(home).read_text(errors="replace")[-1_500:]
    except OSError:
        tail = ""
    return f"Its log, {_log_path(home)}, ends with:\n{tail}"


def _spawn(home: Path) -> "subprocess.Popen[bytes]":
    # Not at the top: the server itself runs this file by its path.
    from stacks.orchestrator.template import begin_with_template

    home.mkdir(parents=True, exist_ok=True)
    begin_with_template(home)
    return subprocess.Popen(
        # By path and with -P: neither the caller's folder nor this one may shadow a module of the server.
        [sys.executable, "-P", str(Path(__file__).absolute()), str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_server_environment(home, os.environ),
        start_new_session=True,
    )


def _server_environment(home: Path, base: Mapping[str, str]) -> dict[str, str]:
    dropped = ("PREFECT_API_URL", "PREFECT_UI_URL", "PREFECT_API_KEY", "PREFECT_PROFILE")
    environment = {name: value for name, value in base.items() if name not in dropped}
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        # Task runs are written together once a second, events every five, not each by itself.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
        # One process, no pages: schedules and the user interface are the business of `prefect server start`.
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    return {**defaults, **environment, "PREFECT_HOME": str(home), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}


def serve(home: Path) -> int:
    """Be the server of `home` until standard input and every lease are closed. Returns the exit code."""
    lock = _lock(home)
    if lock is None:
        return TAKEN
    _Record.path(home).unlink(missing_ok=True)
    with _log_path(home).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    leases = _Leases()
    threading.Thread(target=leases.watch, daemon=True).start()

    import asyncio

    try:
        return asyncio.run(_serve(home, leases))
    finally:
        _Record.path(home).unlink(missing_ok=True)
        lock.close()


def _lock(home: Path) -> IO[str] | None:
    """Lock the home for the life of this process, or None when another server has it."""
    import fcntl

    file = (home / "gauntlet-server.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return file


class _Leases:
    """Who uses this server: the process at the other end of standard input, and every connection here."""

    def __init__(self) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self.ended = threading.Event()

    def watch(self) -> None:
        """Return when the last user is gone; nobody new is let in after that."""
        with selectors.DefaultSelector() as selector:
            users: set[Any] = {0}
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._door, selectors.EVENT_READ)
            while users:
                for key, _ in selector.select():
                    if key.fileobj is self._door:
                        user, _address = self._door.accept()
                        with contextlib.suppress(OSError):
                            user.sendall(ACKNOWLEDGED)
                        users.add(user)
                        selector.register(user, selectors.EVENT_READ)
                    elif self._gone(key.fileobj):
                        selector.unregister(key.fileobj)
                        users.discard(key.fileobj)
                        if isinstance(key.fileobj, socket.socket):
                            key.fileobj.close()
        self._door.close()
        self.ended.set()

    @staticmethod
    def _gone(user: Any) -> bool:
        try:
            return (os.read(0, 64) if user == 0 else user.recv(64)) == b""
        except OSError:
            return True


async def _serve(home: Path, leases: _Leases) -> int:
    import asyncio
    import gc

    # Nothing of what the imports make is garbage: not looking for any saves a quarter of the start.
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app

    # The protocol has to be named: asyncio turns Nagle's algorithm off only then, and with it each answer takes 40 ms.
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(), log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    gc.freeze()
    gc.enable()
    running = asyncio.create_task(server.serve(sockets=[door]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        _Record(f"http://127.0.0.1:{door.getsockname()[1]}/api", os.getpid(), leases.port).write(home)
    while not running.done() and not leases.ended.is_set():
        await asyncio.sleep(0.05)
    if not running.done():
        _Record.path(home).unlink(missing_ok=True)
        await _drain(server)
        server.should_exit = True
    await running
    return 0 if server.started else 1


async def _drain(server: "uvicorn.Server") -> None:
    """Let what the last users sent reach the database: requests, event streams, the queue of task run events."""
    import asyncio

    from prefect.server.utilities.messaging.memory import METRICS

    deadline = time.monotonic() + DRAIN_SECONDS
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        waiting = sum(topic["published"] - topic["consumed"] for topic in METRICS.values())
        quiet = 0 if server.server_state.tasks or waiting > 0 else quiet + 1


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
