"""The service's Prometheus metrics, by model and version, added up over all worker processes.

BentoML tells each worker where its numbers are kept (`PROMETHEUS_MULTIPROC_DIR`), and prometheus_client looks there
once, when it is imported: so it is imported late, and `metrics()` is first called in a worker.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from models.errors import bounded

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger("gauntlet.metrics")

Route = Literal["predict", "batch", "outcomes"]
Swap = Literal["switched", "refused", "late"]

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
EVERY_SECONDS: Final = 2.0
DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_RESERVED: Final = 2**20  # bytes of each file; about 5,000 series
_KINDS: Final = ("counter", "histogram", "gauge_liveall", "gauge_livemax", "gauge_livemin", "gauge_livesum")
_SERVED: Final = ("model", "version", "variant", "route")


class Metrics:
    """What a worker counts. Names of models, routes and kinds become labels: never pass what a caller made up.

    A gauge is of the workers that live; a counter keeps what dead ones counted.
    """

    def __init__(self, registry: "CollectorRegistry | None" = None) -> None:
        """Define the metrics.

        Args:
            registry: Where to; prometheus_client's own when left out, which takes each name once.

        Raises:
            OSError: The disk is full.
        """
        if directory := os.environ.get(DIRECTORY_VARIABLE):
            reserve(Path(directory))
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        own = registry or REGISTRY
        counter, gauge = partial(Counter, registry=own), partial(Gauge, registry=own)
        self._requests = counter(
            "gauntlet_requests",
            "Requests of a model, by status; version - where none was there to fail.",
            (*_SERVED, "status"),
        )
        self._seconds = Histogram(
            "gauntlet_request_seconds", "Seconds until an answer.", _SERVED, buckets=BUCKETS, registry=own
        )
        self._rows = counter("gauntlet_rows", "Rows that were answered.", _SERVED[:3])
        self._errors = counter("gauntlet_errors", "Requests without an answer, by why.", ("model", "version", "kind"))
        self._refusals = counter("gauntlet_refusals", "Requests refused before a model saw them.", ("reason",))
        self._swaps = counter("gauntlet_swaps", "What each worker did about new champions.", ("model", "outcome"))
        self._log_failures = counter("gauntlet_log_failures", "Answers withheld: the log did not take them.")
        self._log_lost = counter("gauntlet_log_lost", "Answers given that the log did not take (best effort).")
        self._log_queue = gauge("gauntlet_log_queue", "Records that wait for the log.", multiprocess_mode="livesum")
        self._resident = gauge("gauntlet_resident_models", "Models in a worker's memory.", multiprocess_mode="liveall")
        self._since = gauge(
            "gauntlet_champion_since_seconds",
            "Unix time from which the version is champion; 0: it is none any more.",
            ("model", "version"),
            multiprocess_mode="livemax",
        )
        self._cpu = gauge("gauntlet_worker_cpu_seconds", "CPU time of a worker.", multiprocess_mode="liveall")
        self._memory = gauge("gauntlet_worker_memory_bytes", "A worker's resident memory.", multiprocess_mode="liveall")
        self._ready = gauge("gauntlet_ready", "1 when every worker answers.", multiprocess_mode="livemin")
        self._counts: dict[tuple[str, int | str, str, str, int], _Counts] = {}
        self._champions: dict[str, int] = {}
        self._fault = ""

    def answered(
        self, model: str, version: int | str, variant: str, route: Route, status: int, seconds: float, rows: int = 1
    ) -> None:
        """Count a request that a model was asked, or that failed before there was one to ask.

        Args:
            model: Its name.
            version: Of the Release that was asked; "-" where none was.
            variant: As what it was asked, champion and so on; "-" where none was.
            route: Which.
            status: HTTP status of the answer; seconds and rows count below 400 only.
            seconds: From the request's arrival.
            rows: How many were answered.
        """
        key = (model, version, variant, route, status)
        counts = self._counts.get(key) or self._counts_of(*key)
        counts.request(1)
        if status < 400:
            counts.seconds(seconds)
            counts.rows(rows)

    def failed(self, kind: str, model: str = "-", version: int | str = "-") -> None:
        """Count a request that got no answer.

        Args:
            kind: One word for why, for example the type of the refusal.
            model: Whose it was; "-" where none is known by that name.
            version: Of the Release that was asked, where one was.
        """
        self._errors.labels(model, str(version), kind).inc()

    def refused(self, reason: str) -> None:
        """Count a request that access refused."""
        self._refusals.labels(reason).inc()

    def swapped(self, model: str, outcome: Swap) -> None:
        """Count what became of a new champion in this worker."""
        self._swaps.labels(model, outcome).inc()

    def champion(self, model: str, version: int, since: float) -> None:
        """Say who is champion now; who was before is none any more.

        Args:
            model: Its name.
            version: The version that answers.
            since: Unix time at which it became champion, so that a restart makes no old one young.
        """
        for outcome in get_args(Swap):
            self._swaps.labels(model, outcome)  # an increase from nothing to 1 would be none to Prometheus
        before = self._champions.get(model)
        if before not in (None, version):
            # Its series cannot be taken out of a file that several processes share.
            self._since.labels(model, str(before)).set(0)
        self._champions[model] = version
        self._since.labels(model, str(version)).set(since)

    def log_failed(self, answers: int = 1) -> None:
        """Count answers that were withheld, for the log did not take them."""
        self._log_failures.inc(answers)

    def log_lost(self, answers: int = 1) -> None:
        """Count answers that were given although the log did not take them."""
        self._log_lost.inc(answers)

    def log_queue(self, records: int) -> None:
        """Say how many records wait for the log."""
        self._log_queue.set(records)

    def resident(self, models: int) -> None:
        """Say how many models this worker holds in memory."""
        self._resident.set(models)

    def ready(self, is_ready: bool) -> None:
        """Say whether this worker answers."""
        self._ready.set(is_ready)

    def watch(self, also: Callable[[], None] = lambda: None) -> None:
        """Measure this worker now, and again every two seconds for as long as it lives.

        Args:
            also: Called each time, to set gauges that nobody sets when they change; what it raises is logged.
        """
        self._look(also)
        threading.Thread(target=self._follow, args=(also,), name="gauntlet-metrics", daemon=True).start()

    def measure(self) -> None:
        """Measure this worker's CPU time and memory; remove the gauges of workers that are gone.

        Raises:
            OSError: The disk is full.
        """
        import psutil

        own = psutil.Process()
        times = own.cpu_times()
        self._cpu.set(times.user + times.system)
        self._memory.set(own.memory_info().rss)
        if directory := os.environ.get(DIRECTORY_VARIABLE):
            sweep(Path(directory))
            reserve(Path(directory))

    def _follow(self, also: Callable[[], None]) -> None:
        while True:
            time.sleep(EVERY_SECONDS)
            self._look(also)

    def _look(self, also: Callable[[], None]) -> None:
        fault = ""
        try:
            self.measure()
            also()
        except Exception as error:
            fault = bounded(f"{type(error).__name__}: {error}")
        if fault and fault != self._fault:
            log.error("this worker cannot be measured: %s", fault)
        self._fault = fault

    def _counts_of(self, model: str, version: int | str, variant: str, route: Route, status: int) -> "_Counts":
        served = (model, str(version), variant)
        counts = _Counts(
            self._requests.labels(*served, route, str(status)).inc,
            self._seconds.labels(*served, route).observe,
            self._rows.labels(*served).inc,
        )
        self._counts[model, version, variant, route, status] = counts
        return counts


@dataclass(frozen=True, slots=True)
class _Counts:
    """The metrics of one kind of answer, their labels looked up."""

    request: Callable[[float], None]
    seconds: Callable[[float], None]
    rows: Callable[[float], None]


@lru_cache(maxsize=1)
def metrics() -> Metrics:
    """This worker's metrics."""
    return Metrics()


def page(more: Callable[[], bytes] = bytes) -> tuple[bytes, str]:
    """What `/metrics` answers, over all workers, and its media type.

    It takes a millisecond or two for each served version: call it in a thread.

    Args:
        more: Metrics that are not added up over workers, in the same format.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    if not os.environ.get(DIRECTORY_VARIABLE):
        return generate_latest(REGISTRY) + more(), CONTENT_TYPE_LATEST
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry) + more(), CONTENT_TYPE_LATEST


def sweep(directory: Path) -> None:
    """Remove the gauges of processes that are gone: one that was killed leaves its files behind.

    Files of counters and histograms stay, cut to their content: what was counted was counted.
    """
    for path in directory.glob("*.db"):
        if _lives(int(path.stem.rpartition("_")[2])):
            continue
        if path.name.startswith("gauge_live"):
            path.unlink(missing_ok=True)
        elif path.stat().st_size >= _RESERVED:
            os.truncate(path, max(8, _used(path)))  # readers want a head


def reserve(directory: Path) -> None:
    """Take up the disk that this process's metrics may need soon; on a full one, writing a mapped file kills.

    prometheus_client grows its files without taking anything up. Nothing is done where the system cannot (macOS).

    Raises:
        OSError: The disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    for kind in _KINDS:
        path = directory / f"{kind}_{os.getpid()}.db"
        with path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, max(_RESERVED, 4 * _used(path)))


def _used(path: Path) -> int:
    """Bytes of a file of prometheus_client that hold something: it says so in its first four."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), sys.byteorder)


def _lives(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
