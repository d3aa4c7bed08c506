"""A real `bentoml serve bentos.service:Gauntlet` for tests, the ledger that it follows, and clients that ask it."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from bentos.release import Release
from stacks.home import clone_dir
from stacks.ledger import Entry, Ledger
from stacks.orchestrator.tether import tethered
from steps.apart import apart
from tests.ports import free_port

READY_SECONDS = 240.0


@dataclass(frozen=True)
class Service:
    """A service that follows a ledger.

    Attributes:
        port: Where it answers.
        database: URL of the ledger and the log.
        process: What holds its processes.
        said: What they write.
    """

    port: int
    database: str
    process: "subprocess.Popen[bytes]"
    said: Path

    def ask(self, method: str, path: str, data: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of one request."""
        status, told, _ = self.exchange(method, path, data, **headers)
        return status, told

    def exchange(self, method: str, path: str, data: Any = None, **headers: str) -> tuple[int, Any, Message]:
        """`ask`, and the headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body = None if data is None else json.dumps(data).encode()
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            content = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(content) if is_json else content.decode(), response.headers
        finally:
            connection.close()

    def until(self, what: Callable[[], bool], seconds: float = 240.0) -> float:
        """Wait for something; the seconds that it took."""
        begun = time.monotonic()
        while not what():
            assert time.monotonic() - begun < seconds, f"it did not come; the service said: {self.said.read_text()}"
            assert self.process.poll() is None, f"the service ended: {self.said.read_text()}"
            time.sleep(0.05)
        return time.monotonic() - begun

    def versions(self, path: str = "/health", asked: int = 8) -> set[int | None]:
        """The versions that workers say answer, asked a few times."""
        return {self.ask("GET", path)[1].get("version") for _ in range(asked)}


@contextmanager
def following(home: Path, database: str | None = None, workers: int = 2, **environment: str) -> Iterator[Service]:
    """Serve what a ledger says, until the block ends; the service may not be ready yet when it begins."""
    url = database or f"sqlite:///{home / 'gauntlet.db'}"
    port = free_port()
    env = apart(home) | {"GAUNTLET_DATABASE": url, "GAUNTLET_WORKERS": str(workers), **environment}
    said = home / "service.log"
    command = [sys.executable, "-m", "bentoml", "serve", "bentos.service:Gauntlet", "--port", str(port)]
    with (
        said.open("ab") as output,
        tethered(command, env=env, cwd=clone_dir(), stdout=output, stderr=output) as process,
    ):
        yield Service(port, url, process, said)


def is_ready(service: Service) -> bool:
    """Whether `/readyz` says so."""
    try:
        return service.ask("GET", "/readyz")[0] == 200
    except OSError:
        return False


def crown(ledger: Ledger, version: int, release: Release, action: Any = "promote", uri: str | None = None) -> Entry:
    """Make a Release champion by the ledger, as `promote` does; it lies in its directory, or at `uri`."""
    manifest = (release.directory / "manifest.json").read_bytes()
    place = {"release_uri": uri or str(release.directory), "manifest_sha256": hashlib.sha256(manifest).hexdigest()}
    return ledger.append(action, release.schema.model, version, payload=place)


@dataclass(frozen=True)
class Seen:
    """One answer that a client got.

    Attributes:
        sent: When it was asked, in seconds since 1970.
        done: When it was there.
        status: Of HTTP; 0 where the connection broke.
        body: The answer.
    """

    sent: float
    done: float
    status: int
    body: Any


class Clients:
    """Clients in threads that ask the same rows one after the other, each on its own connection, until told to stop."""

    def __init__(self, port: int, path: str, rows: Sequence[dict[str, Any]], count: int, pause: float) -> None:
        self.seen: list[Seen] = []
        self._bodies = [json.dumps({"features": row}).encode() for row in rows]
        self._port, self._path, self._pause = port, path, pause
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while not self._ended.wait(self._pause):
            body, sent = self._bodies[number % len(self._bodies)], time.time()
            try:
                connection.request("POST", self._path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                self.seen.append(Seen(sent, time.time(), response.status, json.loads(content)))
            except (OSError, http.client.HTTPException):
                self.seen.append(Seen(sent, time.time(), 0, None))
                connection.close()


def pids_of(service: Service, part: str) -> list[int]:
    """Processes below a service's tether whose command line holds a text."""
    import psutil

    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        try:
            if any(part in word for word in process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return [pid for pid in found if pid != os.getpid()]
