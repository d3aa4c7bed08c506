"""A step on a Dask worker: a fork of a warm server there, driven and heard through two queues on the scheduler.

The task that Dask runs (`run_step`) is told ids and plain values only. It first takes the ticket that the caller has
put into the queue of commands: there is one, so however often Dask runs the task, the step is started at most once.
Later commands are numbers of signals. What the process sends goes up the other queue in batches; that queue is short,
so a step that floods it waits for its reader.
"""

import json
import logging
import os
import queue
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stacks.orchestrator.place import PlaceError, StepProcess
from stacks.orchestrator.pool import Pool, Wanted, pool_for

if TYPE_CHECKING:
    from distributed import Worker

logger = logging.getLogger("distributed.worker.zenml")

TICKET = 0
BATCHES = 8
LARGEST_BATCH = 262_144
AHEAD = 1_000
LISTEN_SECONDS = 1.0
GRACE_SECONDS = 15.0
KNOWN_RUNS = 8
ALIVE = ("running", "paused", "closing_gracefully")


def commands_of(key: str) -> str:
    """Name of the queue that a step's caller writes to: the ticket, then signals."""
    return f"{key}-commands"


def messages_of(key: str) -> str:
    """Name of the queue that a step's worker writes to: lists of messages, as JSON."""
    return f"{key}-messages"


class Line:
    """The worker's end of a step's two queues; any thread of it may use it."""

    def __init__(self, worker: "Worker", key: str) -> None:
        self._worker = worker
        self._key = key

    def command(self, seconds: float) -> int | None:
        """The next command, or None when none has come within some seconds."""
        try:
            return int(self._ask("queue_get", name=commands_of(self._key), timeout=seconds)["value"])
        except TimeoutError:
            return None

    def send(self, messages: list[str]) -> None:
        """Send a batch, as soon as there is room for it."""
        self._ask("queue_put", name=messages_of(self._key), data=f"[{','.join(messages)}]")

    def wanted(self) -> bool:
        """Whether anybody still waits for the step: neither its caller nor the scheduler is gone."""
        task = self._worker.state.tasks.get(self._key)
        return self._worker.status.name in ALIVE and task is not None and task.state == "executing"

    def _ask(self, operation: str, **values: Any) -> Any:
        from distributed.utils import sync

        return sync(self._worker.loop, getattr(self._worker.scheduler, operation), **values)


def run_step(job: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Run a step to its end, if its ticket is still there; called by Dask, in a thread of a worker.

    Args:
        job: Ids and plain values, as `Place.start` takes them.
        wanted: Fields of `Wanted`; what it does not say is as it is on this worker.
    """
    from distributed import get_worker

    worker = get_worker()
    line = Line(worker, str(worker.get_current_task()))
    if line.command(0) != TICKET:
        logger.warning("Step %s was started before, or is not wanted any more: it is not started here.", job["step"])
        return
    name = f"Dask worker {worker.address}" + ("" if worker.name == worker.address else f" ({worker.name})")
    line.send([json.dumps({"kind": "place", "name": name, "address": worker.address, "pid": os.getpid()})])
    try:
        process = _pool_of_run(job["zenml_run_id"], _here(wanted)).run(_complete(job))
    except PlaceError as error:
        line.send([json.dumps({"kind": "exit", "status": None, "reason": f"on {name}: {error}"})])
        return
    over = threading.Event()
    threading.Thread(target=_obey, args=(line, process, over), daemon=True, name="zenml-commands").start()
    try:
        _pass_on(process, line.send)
    finally:
        over.set()


def _here(wanted: Mapping[str, Any]) -> Wanted:
    """What to import, of what is installed or in the folder of this worker, unless the caller's places are named."""
    folder = os.getcwd()  # noqa: PTH109 - as it is, for os.chdir
    here = {"source_root": folder, "folder": folder, "script": None, "package": None}
    return Wanted(**{**here, **wanted})


def _complete(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job with this worker's environment; the step's own variables come from ZenML, in the step's process."""
    folder = os.getcwd()  # noqa: PTH109 - as it is, for os.chdir
    return {"folder": folder, "arguments": ["step"], **job, "environment": {**os.environ}, "asks_zenml": True}


_guard = threading.Lock()
_pools: OrderedDict[str, Pool] = OrderedDict()


def _pool_of_run(run_id: str, wanted: Wanted) -> Pool:
    """The warm server of this worker: looked at for changed files once a run."""
    with _guard:
        pool = _pools.pop(run_id, None)
        if pool is None or not pool.alive():
            pool = pool_for(wanted)
        _pools[run_id] = pool
        if len(_pools) > KNOWN_RUNS:
            _pools.popitem(last=False)
        return pool


def warm_up(wanted: dict[str, Any]) -> None:
    """Import what steps need, before the first comes; called by Dask in a worker of the caller's own cluster."""

    def work() -> None:
        try:
            pool_for(_here(wanted))
        except PlaceError as error:
            # The first step will say so again, where it counts.
            logger.info("Not warm: %s", error)

    threading.Thread(target=work, daemon=True, name="zenml-warm-up").start()


def _obey(line: Line, process: StepProcess, over: threading.Event) -> None:
    """Send the signals that the caller asks for; end the process when nobody wants it any more."""
    try:
        while not over.is_set():
            number = line.command(LISTEN_SECONDS)
            if number:
                process.signal(number)
            elif not line.wanted():
                break
    except Exception as error:
        # Whatever it was, nobody can stop the step any more.
        logger.warning("The step's caller cannot be heard any more: %r", error)
    if not over.is_set():
        process.signal(signal.SIGTERM)
        if not over.wait(GRACE_SECONDS):
            process.signal(signal.SIGKILL)


def _pass_on(process: StepProcess, send: Callable[[list[str]], None]) -> None:
    """Send all that a process says, in as few batches as its reader's pace allows."""
    box: queue.Queue[str | None] = queue.Queue(AHEAD)

    def read() -> None:
        try:
            for message in process.messages():
                box.put(json.dumps(message))
        except PlaceError as error:
            box.put(json.dumps({"kind": "exit", "status": None, "reason": str(error)}))
        finally:
            box.put(None)

    threading.Thread(target=read, daemon=True, name="zenml-messages").start()
    try:
        last = False
        while not last:
            batch, last = _batch(box)
            send(batch)
    except BaseException:
        process.signal(signal.SIGKILL)
        threading.Thread(target=_empty, args=(box,), daemon=True).start()
        raise


def _batch(box: "queue.Queue[str | None]") -> tuple[list[str], bool]:
    """What has come, at least one message unless it is the end; and whether it is the end."""
    batch: list[str] = []
    size = 0
    while size < LARGEST_BATCH:
        try:
            message = box.get(block=not batch)
        except queue.Empty:
            return batch, False
        if message is None:
            return batch, True
        batch.append(message)
        size += len(message)
    return batch, False


def _empty(box: "queue.Queue[str | None]") -> None:
    while box.get() is not None:
        pass
