"""Processes for steps: one warm server for this process, and a fork of it for every step.

The server is kept for the next run. It is started anew when a file that it imported has changed, or when the
environment says other things about what is read at import.
"""

import atexit
import contextlib
import io
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from stacks.orchestrator import forkserver
from stacks.orchestrator.forkserver import COMMAND
from stacks.orchestrator.place import PlaceError

logger = logging.getLogger(__name__)

AT_IMPORT = ("ZENML_", "PREFECT_", "PYTHON", "LD_", "OMP_", "OPENBLAS_", "MKL_", "NUMBA_")
END_SECONDS = 5.0


class PoolError(PlaceError):
    """The process that steps are forked from is gone, or cannot import what they need; the text says why."""


@dataclass(frozen=True)
class Wanted:
    """What a server has to have imported.

    Attributes:
        components: Modules of the stack's components.
        sources: Import paths of the steps.
        source_root: Where ZenML looks for them.
        folder: The working folder.
        path: Where modules are looked for.
        script: File of the script that calls the pipeline, if there is one.
        package: Package of that script.
    """

    components: Sequence[str]
    sources: Sequence[str]
    source_root: str | None
    folder: str = field(default_factory=os.getcwd)
    path: Sequence[str] = field(default_factory=lambda: [*sys.path])
    script: str | None = field(default_factory=lambda: getattr(sys.modules["__main__"], "__file__", None))
    package: str | None = field(default_factory=lambda: getattr(sys.modules["__main__"], "__package__", None))

    def request(self, bare: bool) -> dict[str, Any]:
        """As the server is told it; a bare one imports nothing of the user's."""
        return {**vars(self), "sources": [] if bare else self.sources}


class Job:
    """A process for one step, from the server's fork to the news of its end."""

    def __init__(self, pool: "Pool", number: int, connection: socket.socket, output: int) -> None:
        self._pool = pool
        self._number = number
        self._connection = connection
        self._output = output

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it started, if it still runs."""
        self._pool.command(b"k", self._number, number)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the process sends, as it comes, the last one of kind `exit`.

        Raises:
            PoolError: The server is gone, and the process with it.
        """
        ended: dict[str, Any] | None = None
        lines, raw = _Lines(), _Lines()
        output = io.FileIO(self._output)
        with selectors.DefaultSelector() as selector, self._connection, output:
            selector.register(self._connection, selectors.EVENT_READ)
            os.set_blocking(output.fileno(), False)
            selector.register(output, selectors.EVENT_READ)
            while ended is None:
                for key, _ in selector.select():
                    if key.fileobj is output:
                        yield from _printed(raw, output, selector)
                        continue
                    data = self._connection.recv(65_536)
                    if not data:
                        raise PoolError("the process that steps are forked from ended without a word")
                    for line in lines.take(data):
                        message = _message(line)
                        if message.get("kind") == "exit":
                            ended = message
                        elif message:
                            yield message
            # The server has ended all that could still write.
            yield from _printed(raw, output, None)
        for line in raw.rest():
            yield {"kind": "line", "stream": "stdout", "text": line}
        yield ended


class _Lines:
    """Bytes put together to lines."""

    def __init__(self) -> None:
        self._begun = b""

    def take(self, data: bytes) -> list[str]:
        *lines, self._begun = (self._begun + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def rest(self) -> list[str]:
        return [self._begun.decode(errors="replace")] if self._begun else []


def _message(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        # Empty, or cut short by a signal.
        return {}


def _printed(lines: _Lines, output: io.FileIO, selector: selectors.BaseSelector | None) -> Iterator[dict[str, Any]]:
    while data := output.read(65_536):
        for line in lines.take(data):
            yield {"kind": "line", "stream": "stdout", "text": line}
    if data == b"" and selector:
        selector.unregister(output)


class Pool:
    """One warm server."""

    def __init__(self, bare: bool = False) -> None:
        self.bare = bare
        self.owner = os.getpid()
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._control, end = socket.socketpair()
        with end:
            self._server = subprocess.Popen(
                # By path and with -P: neither the caller's folder nor this one may shadow a module.
                [sys.executable, "-P", str(Path(forkserver.__file__).absolute()), str(end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Whether it can still be asked for a process, by this one."""
        return self.owner == os.getpid() and self._server.poll() is None

    def prepare(self, wanted: Wanted) -> str | None:
        """Have what is wanted imported; None when processes may be forked, else why not from this server."""
        connection, theirs = socket.socketpair()
        with connection, connection.makefile("rwb") as file:
            with theirs:
                self.command(b"p", descriptors=[theirs.fileno()])
            file.write(json.dumps(wanted.request(self.bare)).encode() + b"\n")
            file.flush()
            line = file.readline()
        if not line:
            raise PoolError("the process that steps are forked from ended while it imported them")
        answer = json.loads(line)
        if answer["error"]:
            raise PoolError(f"the process that steps are forked from could not import what it needs: {answer['error']}")
        if answer["changed"]:
            return f"changed: {', '.join(answer['changed'])}"
        return f"threads: {', '.join(answer['threads'])}" if answer["threads"] and not self.bare else None

    def run(self, job: Mapping[str, Any]) -> Job:
        """Start a process for a job."""
        connection, theirs = socket.socketpair()
        output, end = os.pipe()
        number = next(self._numbers)
        try:
            with theirs:
                self.command(b"j", number, descriptors=[theirs.fileno(), end])
            connection.sendall(json.dumps(job).encode() + b"\n")
        except OSError as error:
            connection.close()
            os.close(output)
            raise PoolError(f"the process that steps are forked from is gone: {error}") from None
        finally:
            os.close(end)
        return Job(self, number, connection, output)

    def command(self, letter: bytes, number: int = 0, value: int = 0, descriptors: Sequence[int] = ()) -> None:
        """Tell the server something; one that is gone needs no telling of signals."""
        with self._lock, contextlib.nullcontext() if descriptors else contextlib.suppress(OSError):
            socket.send_fds(self._control, [COMMAND.pack(letter, number, value)], [*descriptors])

    def retire(self) -> None:
        """Let it end with its last job."""
        self.command(b"f")

    def close(self) -> None:
        """End it, and what it runs."""
        if self.owner != os.getpid():
            return
        self._control.close()
        try:
            self._server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


class PoolPlace:
    """This machine: each step in a fork of the warm server."""

    def __init__(self, wanted: Wanted, environments: Mapping[str, dict[str, str]]) -> None:
        """Name what a run needs.

        Args:
            wanted: What its steps import.
            environments: For each step, variables on top of this process's.
        """
        self._wanted = wanted
        self._environments = environments
        self._pool: Pool | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "PoolPlace":
        """Nothing is needed until the first step that is not cached."""
        return self

    def __exit__(self, *_: object) -> None:
        """The server stays warm for the next run."""

    def start(self, job: Mapping[str, Any]) -> Job:
        """Fork a process that is where the pipeline was called, with the caller's environment and the step's.

        Raises:
            PoolError: There is none to fork.
        """
        return self._warm().run(
            {
                **job,
                "environment": {**os.environ, **self._environments[job["step"]]},
                "folder": os.getcwd(),  # noqa: PTH109 - as it is, for os.chdir
                "arguments": sys.argv,
            }
        )

    def _warm(self) -> Pool:
        """The server of this run: looked at for changed files once, started anew should it have ended meanwhile."""
        with self._lock:
            if self._pool is None or not self._pool.alive():
                self._pool = pool_for(self._wanted)
            return self._pool


_guard = threading.Lock()
_pools: list[Pool] = []
_current: dict[tuple[tuple[str, str], ...], Pool] = {}


def warm_up() -> None:
    """Have the warm server of this process started, without waiting until it has imported anything."""
    key = _environment_at_import()
    with _guard:
        if (pool := _current.get(key)) is None or not pool.alive():
            _current[key] = _started(bare=False)


def pool_for(wanted: Wanted) -> Pool:
    """The warm server of this process, started if need be, with what is wanted imported.

    Raises:
        PoolError: It cannot be started.
    """
    key = _environment_at_import()
    with _guard:
        pool = _current.get(key)
        for _ in range(3):
            if pool is None or not pool.alive():
                pool = _started(bare=False)
            reason = pool.prepare(wanted)
            if reason is None:
                for old in {*_current.values()} - {pool}:
                    old.retire()
                _current.clear()
                _current[key] = pool
                return pool
            pool.retire()
            bare = reason.startswith("threads")
            if bare:
                logger.warning("Importing the steps starts %s: each process of a step imports them anew.", reason)
            pool = _started(bare)
    raise PoolError(f"the process that steps are forked from cannot be kept fresh ({reason})")


def _environment_at_import() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(AT_IMPORT)))


def _started(bare: bool) -> Pool:
    for old in [pool for pool in _pools if not pool.alive()]:
        _pools.remove(old)
    pool = Pool(bare)
    _pools.append(pool)
    return pool


@atexit.register
def _close_all() -> None:
    for pool in _pools:
        pool.close()


def name_of_signal(status: int) -> str:
    """`signal 9 (SIGKILL)`, for the negative exit code of a process that a signal ended."""
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"
