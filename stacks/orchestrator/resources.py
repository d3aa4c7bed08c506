"""What a step used: wall time, CPU time and memory, measured around it and written to ZenML's record of it."""

import contextlib
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from zenml.models import StepRunResponse

logger = logging.getLogger(__name__)

GROUP = "resources"
SAMPLE_SECONDS = 0.1
LARGEST_SHARE = 0.05
MIB = 2**20


@dataclass(frozen=True)
class Usage:
    """What a block of work used, in this process and in those that were started in it.

    Attributes:
        wall_seconds: From its begin to its end.
        cpu_seconds: User and system time of all of them.
        peak_mib: Most memory at one moment, in MiB: resident, or with children the proportional share of each.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


@contextmanager
def measured() -> Iterator[Callable[[], Usage]]:
    """Measure a block of work.

    Children that were there before it began (a Prefect server, a warm pool) are none of it.

    Yields:
        What tells the usage so far; after the block, that of the block.
    """
    meter = _Meter()
    try:
        yield meter.usage
    finally:
        meter.stop()


class _Meter:
    """Clocks at the begin of a block, and a thread that looks at the memory ten times a second at most.

    Looking takes up to some ten milliseconds where there are children: it then looks less often.
    """

    def __init__(self) -> None:
        self._others = set(_descendants())
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        self._peak = 0
        self._final: Usage | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resources", daemon=True)
        self._thread.start()

    def usage(self) -> Usage:
        """The usage from the begin until now, or until `stop`."""
        if self._final:
            return self._final
        own = self._own()
        self._look(own)
        cpu = _cpu_seconds() - self._cpu + sum(_cpu_seconds_of(child) for child in own)
        wall = time.perf_counter() - self._wall
        return Usage(round(wall, 3), round(max(cpu, 0.0), 3), round(self._peak / MIB, 1))

    def stop(self) -> None:
        """End the block."""
        self._over.set()
        self._thread.join()
        self._final = self.usage()

    def _watch(self) -> None:
        while not self._over.is_set():
            begin = time.perf_counter()
            self._look(self._own())
            self._over.wait(max(SAMPLE_SECONDS, (time.perf_counter() - begin) / LARGEST_SHARE))

    def _own(self) -> list[int]:
        return [child for child in _descendants() if child not in self._others]

    def _look(self, children: list[int]) -> None:
        # Pages that a child shares with its parent are counted once, at the price of walking the page tables.
        memory = sum(map(_shared_memory, (os.getpid(), *children))) if children else _memory(os.getpid())
        self._peak = max(self._peak, memory)


def attach(step_run: "StepRunResponse", usage: Usage) -> None:
    """Write a usage to the metadata of a step run and of the artifacts that it made, as the group `resources`.

    Of a step that was taken from the cache nothing is written: it used nothing, and its outputs keep what making them
    took.
    """
    from zenml.client import Client
    from zenml.enums import MetadataResourceTypes
    from zenml.metadata.metadata_types import MetadataTypeEnum
    from zenml.models import RunMetadataRequest, RunMetadataResource

    if step_run.status.value == "cached":
        return
    made = [version for versions in step_run.outputs.values() for version in versions]
    request = RunMetadataRequest(
        project=step_run.project_id,
        resources=[
            RunMetadataResource(id=step_run.id, type=MetadataResourceTypes.STEP_RUN),
            *(RunMetadataResource(id=version.id, type=MetadataResourceTypes.ARTIFACT_VERSION) for version in made),
        ],
        values={GROUP: asdict(usage)},
        types={GROUP: MetadataTypeEnum.DICT},
        publisher_step_id=step_run.id,
    )
    try:
        Client().zen_store.create_run_metadata(request)
    except Exception as error:
        # The step's work is done and recorded: it does not fail for want of its figures.
        logger.warning("What step %s used could not be written to ZenML: %s", step_run.name, error)


def usage_of(step_run: "StepRunResponse") -> Usage | None:
    """What `attach` wrote; None for a step that was cached, or not measured."""
    if step_run.status.value == "cached" or not (values := step_run.run_metadata.get(GROUP)):
        return None
    return Usage(**values)


def _cpu_seconds() -> float:
    """CPU time of this process and of those children that it has seen the end of."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + reaped.ru_utime + reaped.ru_stime


def _cpu_seconds_of(process: int) -> float:
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(process).cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _descendants() -> list[int]:
    """Ids of all living descendants of this process."""
    if not Path("/proc/thread-self/children").exists():
        return [child.pid for child in psutil.Process().children(recursive=True)]
    found: list[int] = []
    open_ids = [os.getpid()]
    while open_ids:
        children = _children(open_ids.pop())
        found += children
        open_ids += children
    return found


def _children(process: int) -> list[int]:
    """Ids of a process's children, of whichever of its threads; a twentieth of the cost of asking all processes."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.scandir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(thread.path, "children").read_text().split())
    return found


def _memory(process: int) -> int:
    """Resident memory, in bytes; 0 for a process that is gone."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).memory_info().rss)
    return 0


def _shared_memory(process: int) -> int:
    """The process's share of the memory that it uses, in bytes, where the system tells; else what is resident."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return _memory(process)
