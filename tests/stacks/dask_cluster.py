"""A Dask scheduler and workers for tests: processes of their own, as a user starts them, to be killed at will."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from stacks.orchestrator.tether import tethered

ROOT = Path(__file__).parents[2]
LIMIT = 240.0


class Cluster:
    """A scheduler at a port that stays the same, and two workers of one thread each."""

    def __init__(self, folder: Path, port: int, resources: str) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        self.folder = folder
        self._port = port
        self._resources = resources
        self._parts = ExitStack()

    def start(self) -> None:
        """Start all, and wait until both workers have registered."""
        folder = self.folder
        dask = [sys.executable, "-m", "dask"]
        base = ["--no-dashboard", "--host", "127.0.0.1"]
        worker = [
            "worker",
            self.address,
            "--nthreads",
            "1",
            "--resources",
            self._resources,
            "--memory-limit",
            "0",
            *base,
        ]
        commands = {
            "scheduler": [*dask, "scheduler", "--port", str(self._port), *base],
            **{name: [*dask, *worker, "--name", name, "--local-directory", str(folder / name)] for name in ("a", "b")},
        }
        for name, command in commands.items():
            log = self._parts.enter_context((folder / f"{name}.log").open("a"))
            env = {**os.environ, "NOTES": str(folder)}
            self._parts.enter_context(tethered(command, env=env, cwd=ROOT, stdout=log, stderr=log, grace=1.0))
        with Client(self.address, set_as_default=False, timeout=LIMIT) as client:
            client.wait_for_workers(2, timeout=LIMIT)

    def stop(self) -> None:
        """End all of it."""
        self._parts.close()

    def kill_scheduler(self) -> None:
        """As a machine that is gone."""
        (found,) = [one for one in psutil.Process().children(recursive=True) if self._is_scheduler(one)]
        found.send_signal(signal.SIGKILL)

    def _is_scheduler(self, process: psutil.Process) -> bool:
        try:
            words = process.cmdline()
        except psutil.Error:
            return False  # one that has just ended
        return words[1:4] == ["-m", "dask", "scheduler"] and str(self._port) in words

    def state(self) -> Mapping[str, object]:
        """What the scheduler has left of the steps that ran: queues by name."""
        with Client(self.address, set_as_default=False, timeout=LIMIT) as client:
            return dict(
                client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.extensions["queues"].client_refcount)
            )


@contextmanager
def running(folder: Path, port: int, resources: str) -> Iterator[Cluster]:
    """A cluster while the block lasts."""
    cluster = Cluster(folder, port, resources)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(found: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def _queues(dask_scheduler: Any) -> dict[str, int]:
    return dict(dask_scheduler.extensions["queues"].client_refcount)
