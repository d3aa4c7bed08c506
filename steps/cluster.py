"""Dask workers for one step: those of the scheduler that `GAUNTLET_DASK` names, else of this machine, ended with it.

Workers of this machine are started as a module of ours: Dask's own start would import an unguarded script of the user
again. Each ends when the line to whoever started it is closed, also by `kill -9`.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ConfigError, GauntletError, WorkError, bounded, shown
from stacks.home import secret_key

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

SCHEDULER, WORKERS, MEMORY = "GAUNTLET_DASK", "GAUNTLET_DASK_WORKERS", "GAUNTLET_DASK_MEMORY"
KEYS = ("tls_ca_file", "tls_client_cert", "tls_client_key", "tls_worker_cert", "tls_worker_key")
ROOT = Path(__file__).absolute().parents[1]
ANSWER_SECONDS = 15.0
START_SECONDS = 120.0
LOOK_SECONDS = 2.0
DESERTED_SECONDS = 60.0
_QUIET = ("distributed", "distributed.client", "distributed.scheduler", "distributed.worker", "distributed.nanny")
_SETTINGS = {
    # A worker that spills and waits at its limit does not end; one that is ended has an error that says so.
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "0.95",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


@dataclass(frozen=True)
class Cluster:
    """Workers that are ready.

    Attributes:
        client: Dask's.
        work: What they are for, in messages.
        limit: Memory of each, in bytes; 0 where it is not known.
        cure: What to do where a worker was lost.
    """

    client: "Client"
    work: str
    limit: int
    cure: str

    @property
    def workers(self) -> tuple[str, ...]:
        """Addresses of those that are there now."""
        return tuple(sorted(self.client.scheduler_info(n_workers=-1)["workers"]))

    def each(self, function: Callable[..., Any], items: Iterable[Any], *given: Any) -> list[Any]:
        """What `function(item, *given)` comes to for each item, in order.

        Raises:
            GauntletError: As the function says.
            WorkError: A worker or the scheduler was lost, or a worker ran out of memory.
        """
        from distributed import as_completed

        with self.telling():
            futures = [self.client.submit(function, item, *given, pure=False) for item in items]
            places = {future.key: place for place, future in enumerate(futures)}
            found: list[Any] = [None] * len(futures)
            with self._peopled(futures):
                try:
                    for future in as_completed(futures):
                        found[places[future.key]] = future.result()
                        future.release()
                except BaseException:
                    self.client.cancel(futures)
                    raise
        return found

    @contextmanager
    def _peopled(self, futures: Sequence[Any]) -> Iterator[None]:
        """Give the futures up when no worker is left for a while: Dask would wait for the next one for ever.

        Raises:
            WorkError: None was left.
        """
        over, deserted = threading.Event(), threading.Event()

        def look_on() -> None:
            alone = 0.0
            while not over.wait(LOOK_SECONDS):
                alone = 0.0 if self.workers else alone + LOOK_SECONDS
                if alone >= DESERTED_SECONDS:
                    deserted.set()
                    self.client.cancel(futures)
                    return

        threading.Thread(target=look_on, name="gauntlet-dask-workers", daemon=True).start()
        try:
            yield
        except BaseException:
            if deserted.is_set():
                raise WorkError(
                    f"{self.work}: no Dask worker was left for {DESERTED_SECONDS:g} seconds; nothing was kept. "
                    "Start workers of that scheduler; run again"
                ) from None
            raise
        finally:
            over.set()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Say what is meant when workers are lost inside."""
        from distributed import KilledWorker
        from distributed.comm import CommClosedError

        try:
            yield
        except GauntletError:
            raise
        except (KilledWorker, MemoryError, WorkerLost) as error:
            raise WorkError(self.lost(isinstance(error, MemoryError))) from None
        except (CommClosedError, TimeoutError, asyncio.CancelledError) as error:
            raise WorkError(f"{self.work}: the Dask scheduler went away ({type(error).__name__}); run again") from None

    def lost(self, memory: bool = False) -> str:
        """What is said of a lost worker."""
        limit = f" (its limit is {self.limit / 2**30:.1f} GiB)" if self.limit else ""
        what = f"has too little memory{limit}" if memory else f"was lost, most likely for want of memory{limit}"
        return f"{self.work}: a Dask worker {what}; nothing was kept. {self.cure}"

    def peak(self) -> int:
        """The most memory that any worker has had so far, in bytes."""
        return max(self.client.run(peak_memory).values(), default=0)


class WorkerLost(Exception):
    """A worker that was needed is gone."""


@contextmanager
def cluster(work: str) -> Iterator[Cluster]:
    """Have Dask workers for a step; those that were started here are gone at the end.

    Args:
        work: What they are for, as messages begin.

    Raises:
        ConfigError: A variable makes no sense.
        WorkError: The scheduler or its workers do not answer, or workers do not start.
    """
    import dask

    dask.config.set(
        {"distributed.scheduler.allowed-failures": 0, "distributed.admin.large-graph-warning-threshold": "1GB"}
    )
    import distributed

    assert distributed
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        address = os.environ.get(SCHEDULER)
        found = _given(stack, work, address) if address else _own(stack, work)
        with found.client.as_current():
            yield found
        with contextlib.suppress(Exception):  # a figure for the log
            count, limit = len(found.workers), f" of {found.limit / 2**30:.2f}" if found.limit else ""
            log.info("%s: %d Dask workers, the largest at most %.2f%s GiB", work, count, found.peak() / 2**30, limit)


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def fingerprint() -> str:
    """Of the key of pseudonyms, which must be the same on every worker."""
    return hmac.new(secret_key(), b"gauntlet dask worker", hashlib.sha256).hexdigest()


def _given(stack: ExitStack, work: str, address: str) -> Cluster:
    from distributed import Client

    cure = f"correct {SCHEDULER}, start that scheduler and its workers, or unset it for a cluster of this machine"
    try:
        client = stack.enter_context(Client(address, timeout=ANSWER_SECONDS, set_as_default=False))
        client.wait_for_workers(1, timeout=ANSWER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        said = f"no Dask scheduler with workers answers at {shown(address)} within {ANSWER_SECONDS:g} seconds"
        raise WorkError(f"{work}: {said} ({type(error).__name__}); {cure}") from None
    try:
        prints = set(client.run(fingerprint).values())
    except Exception as error:
        said = f"the Dask workers at {shown(address)} do not have this code ({type(error).__name__})"
        raise WorkError(f"{work}: {said}; start them in this clone: .venv/bin/dask worker {shown(address)}") from None
    if prints != {fingerprint()}:
        raise WorkError(
            f"{work}: Dask workers at {shown(address)} make other pseudonyms; give them the same GAUNTLET_SECRET"
        )
    limits = [w["memory_limit"] for w in client.scheduler_info(n_workers=-1)["workers"].values()]
    return Cluster(client, work, min(limits), "Give that Dask worker more memory, or more workers less each; run again")


def _own(stack: ExitStack, work: str) -> Cluster:
    """A scheduler in this process, and workers that end with it."""
    from dask.utils import parse_bytes
    from distributed import Client, LocalCluster, Security

    count, limit = _number(WORKERS, _cores()), os.environ.get(MEMORY) or "2GiB"
    try:
        size = int(parse_bytes(limit))
    except ValueError:
        raise ConfigError(f"{MEMORY}: '{limit[:40]}' is no size; write for example 2GiB") from None
    if size < 2**28:
        raise ConfigError(f"{MEMORY}: {limit[:40]} is too little for a worker; give it 512MiB or more")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gauntlet-dask-", ignore_cleanup_errors=True)))
    # On loopback an open scheduler would execute what any user of the machine sends.
    security = Security.temporary()
    scheduler = stack.enter_context(
        LocalCluster(
            n_workers=0,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=False,
            security=security,
            scheduler_kwargs={"dashboard": False},
        )
    )
    for _ in range(count):
        _start(stack, scheduler.scheduler_address, {key: getattr(security, key) for key in KEYS}, size, folder)
    client = stack.enter_context(Client(scheduler, set_as_default=False))
    try:
        client.wait_for_workers(count, timeout=START_SECONDS)
    except TimeoutError:
        raise WorkError(f"{work}: {count} Dask workers do not start{_last_words(folder)}") from None
    cure = f"Set {MEMORY} above {limit}, or write the source in smaller row groups; then run again"
    return Cluster(client, work, size, cure)


def _number(name: str, default: int) -> int:
    given = os.environ.get(name) or str(default)
    if not given.isdecimal() or not int(given):
        raise ConfigError(f"{name}: '{given[:40]}' is no number of workers; write 1 or more")
    return int(given)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(stack: ExitStack, scheduler: str, keys: Mapping[str, str], limit: int, folder: Path) -> None:
    with (folder / "stderr").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, scheduler, str(limit), str(folder)],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env={**os.environ, **_SETTINGS, "PYTHONPATH": os.pathsep.join(_paths())},
            # Ctrl-C is the parent's to answer.
            start_new_session=True,
        )
    stack.callback(_end, process)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # one that has ended is told by its last words
        process.stdin.write(json.dumps(keys).encode() + b"\n")
        process.stdin.flush()


def _paths() -> Sequence[str]:
    given = os.environ.get("PYTHONPATH")
    return [str(ROOT), *([given] if given else [])]


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(folder: Path) -> str:
    words = (folder / "stderr").read_text(errors="replace").strip().splitlines()
    return f" ({bounded(words[-1], 300)})" if words else ""


def serve(scheduler: str, limit: int, folder: str) -> None:
    """Be a worker, watched by a nanny that ends it at its limit, until the line to the parent is closed.

    The first that comes over that line are the keys of the cluster.
    """
    from distributed import Nanny, Security

    keys = Security(require_encryption=True, **json.loads(sys.stdin.buffer.readline()))

    async def work() -> None:
        nanny = Nanny(
            scheduler,
            nthreads=1,
            memory_limit=limit,
            local_directory=folder,
            dashboard=False,
            death_timeout=60,
            security=keys,
        )
        async with nanny:
            threading.Thread(target=_listen, args=(nanny,), daemon=True).start()
            await nanny.finished()

    asyncio.run(work())


def _listen(nanny: Any) -> None:
    sys.stdin.buffer.read()
    with contextlib.suppress(Exception):
        os.kill(nanny.pid, 9)
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
