"""A Dask cluster of this machine: `python -P dask_cluster.py WORKERS`, which cannot outlive the process that wants it.

It listens on loopback only, and speaks TLS with keys made for it: on loopback an open scheduler would execute what any
user of the machine sends. Standard output's first line tells, as JSON, where it is and the keys.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
KEYS = ("tls_ca_file", "tls_client_cert", "tls_client_key")


class LocalDask:
    """One cluster of this machine, from the moment it is wanted."""

    def __init__(self, workers: int) -> None:
        from stacks.orchestrator.tether import tethered

        self.owner = os.getpid()
        self.users = 0
        self._told: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._errors = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        # By path and with -P: neither the caller's folder nor this one may shadow a module.
        command = [sys.executable, "-P", str(Path(__file__).absolute()), str(workers)]
        self._process = self._stack.enter_context(
            tethered(command, stdout=subprocess.PIPE, stderr=self._errors, grace=1.0)
        )

    def alive(self) -> bool:
        """Whether this process can still use it."""
        return self.owner == os.getpid() and self._process.poll() is None

    def address(self) -> tuple[str, dict[str, Any]]:
        """Where the scheduler listens, and the arguments of `distributed.Security` for it; waits until it does.

        Raises:
            PlaceError: It could not be started.
        """
        from stacks.orchestrator.place import PlaceError

        with self._lock:
            if not self._told:
                assert self._process.stdout is not None
                giving_up = threading.Timer(START_SECONDS, self._process.terminate)
                giving_up.start()
                line = self._process.stdout.readline()
                giving_up.cancel()
                if not line:
                    self._errors.seek(0)
                    said = self._errors.read()[-1_000:].decode(errors="replace").strip()
                    raise PlaceError(f"this machine's Dask cluster could not be started: {said or 'it ended'}")
                self._told = json.loads(line)
        return self._told["address"], {"require_encryption": True, **{key: self._told[key] for key in KEYS}}

    def close(self) -> None:
        """End it, and what it runs."""
        if self.owner == os.getpid():
            self._stack.close()


def shares(workers: int) -> dict[str, float]:
    """Dask resources of each of so many workers of this machine: equal parts, but a whole CPU at least."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return {"CPU": max(1.0, CPU_COUNT / workers), "MEMORY": float(MEMORY_LIMIT // workers)}


_guard = threading.Lock()
_clusters: dict[tuple[int, frozenset[tuple[str, str]]], LocalDask] = {}


@contextmanager
def local_cluster(workers: int) -> Iterator[LocalDask]:
    """The cluster of this process for its environment, begun if need be; idle ones for another are ended."""
    key = (workers, frozenset(os.environ.items()))
    with _guard:
        for other, cluster in list(_clusters.items()):
            if not cluster.alive() or (other != key and not cluster.users):
                _clusters.pop(other).close()
        chosen = _clusters[key] = _clusters.get(key) or LocalDask(workers)
        chosen.users += 1
    try:
        yield chosen
    finally:
        with _guard:
            chosen.users -= 1


@atexit.register
def _close_all() -> None:
    while _clusters:
        _clusters.popitem()[1].close()


def main(workers: int) -> None:
    """Run a cluster until this process is ended."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Workers unpickle functions of this package by its name.
    sys.path.append(str(Path(__file__).absolute().parents[2]))
    import dask
    from distributed import LocalCluster, Security

    dask.config.set(
        {
            # Steps have the caller's environment, and as many threads as they would have there.
            "distributed.nanny.pre-spawn-environ": {},
            # What Dask watches itself by takes a tenth of a core.
            "distributed.worker.profile.enabled": False,
            "distributed.admin.tick.interval": "1s",
            "distributed.admin.tick.limit": "30s",
            "distributed.admin.system-monitor.interval": "10s",
            "distributed.admin.system-monitor.disk": False,
            "distributed.admin.system-monitor.gil.enabled": False,
        }
    )
    security = Security.temporary()
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=None,
        security=security,
        resources=shares(workers),
    )
    keys = {key: getattr(security, key) for key in KEYS}
    answer.write(json.dumps({"address": cluster.scheduler_address, **keys}) + "\n")
    answer.close()
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
