"""Processes that score configurations: clean ones, started as a module of ours, which end with whoever started them.

Neither fork (the flow's process has threads) nor spawn or forkserver (they run an unguarded script of the user again)
will do. A worker imports no more than scikit-learn and XGBoost, is given the folds once, as a file that all map into
memory, and then one task at a time as JSON.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Self

from models.config import Family
from models.errors import DataError, WorkError, bounded
from steps.crossval import CrossValidation
from steps.families import one_thread
from steps.trials import Rival, Scored, Task, Trial, attempt

log = logging.getLogger(__name__)

ROOT = Path(__file__).absolute().parents[1]
ATTEMPTS = 2
GO = b"{}"
# The kernel's own limit on a wait is 24 days.
LONGEST = 3600.0


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    line: Connection
    ready: bool = False
    task: Task | None = None


class Scorers:
    """A few worker processes; a context manager, at whose end they are gone.

    A worker that is killed costs its task a second attempt, and a new worker takes its place; a task whose second
    worker is killed too is a failed trial.
    """

    def __init__(self, folds: CrossValidation, families: Iterable[Family], count: int) -> None:
        """Start the workers, which import meanwhile; they take tasks at once and begin them after `begin`.

        Args:
            folds: The folds.
            families: Those that will be scored.
            count: How many workers.
        """
        self._folds = folds
        self._families = sorted(set(families))
        self._count = count
        self._waiting: deque[Task] = deque()
        self._deaths: dict[int, int] = {}
        self._unready = 0
        self._begun = False
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="gauntlet-tuning-", ignore_cleanup_errors=True)
        try:
            self._workers = [self._start() for _ in range(self._count)]
        except BaseException:
            self.close()
            raise
        return self

    def begin(self) -> None:
        """Prepare the folds and let the workers have them."""
        self._folds.prepare(self._families)
        self._folds.save(self._file("folds"), self._families)
        self._begun = True
        for worker in self._workers:
            _say(worker, GO)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; twice is once."""
        for worker in self._workers:
            worker.line.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers = []
        self._folder.cleanup()

    @property
    def room(self) -> int:
        """How many more tasks to have: one for each worker, and one that waits, so that none waits for us."""
        return 2 * self._count - len(self._waiting) - sum(worker.task is not None for worker in self._workers)

    @property
    def busy(self) -> bool:
        """Whether any task is under way."""
        return bool(self._waiting) or any(worker.task for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Have a task scored."""
        self._waiting.append(task)
        self._hand_out()

    def collect(self, seconds: float) -> list[Scored]:
        """What was finished; waits for the first, but no longer than `seconds`.

        Raises:
            DataError: No fold allows the metric.
            WorkError: Workers do not start.
        """
        done: list[Scored] = []
        lines = {worker.line: worker for worker in self._workers}
        for line in wait(list(lines), timeout=min(max(seconds, 0.0), LONGEST)):
            worker = lines[line]  # type: ignore[index]
            try:
                message = json.loads(worker.line.recv_bytes())
            except (EOFError, OSError):
                done += self._replace(worker)
                continue
            if "scored" in message:
                worker.task = None
                done.append(Scored(Trial.model_validate_json(json.dumps(message["scored"])), *message["time"]))
            elif "refused" in message:
                raise DataError(message["refused"])
            else:
                worker.ready = True
        self._hand_out()
        return done

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.task is None and self._waiting:
                worker.task = self._waiting.popleft()
                _say(worker, json.dumps(asdict(worker.task)).encode())

    def _replace(self, worker: _Worker) -> list[Scored]:
        """Start another worker for one that is gone; its task is tried again, or failed."""
        worker.line.close()
        code = worker.process.wait()
        said = f"killed by signal {signal.Signals(-code).name}" if code < 0 else f"gone, with exit code {code}"
        self._unready = 0 if worker.ready else self._unready + 1
        if self._unready > self._count:
            raise WorkError(f"processes that score configurations do not start: {said}{self._last_words()}")
        self._workers[self._workers.index(worker)] = self._start()
        task = worker.task
        if task is None:
            return []
        self._deaths[task.number] = self._deaths.get(task.number, 0) + 1
        log.warning("tuning: the process that scored trial %d was %s", task.number, said)
        if self._deaths[task.number] < ATTEMPTS:
            self._waiting.appendleft(task)
            return []
        failure = f"the process that scored it was {said}, {ATTEMPTS} times; was there too little memory?"
        trial = Trial(number=task.number, family=task.family, params=task.params, score=None, failure=failure)
        return [Scored(trial, time.time(), 0.0)]

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs, self._file("stderr").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(self._file("folds"))],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **one, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                # Ctrl-C is the parent's to answer.
                start_new_session=True,
            )
        worker = _Worker(process, ours)
        if self._begun:
            _say(worker, GO)
        return worker

    def _file(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _last_words(self) -> str:
        words = self._file("stderr").read_text(errors="replace").strip().splitlines()
        return f" ({bounded(words[-1], 300)})" if words else ""


def _say(worker: _Worker, message: bytes) -> None:
    """Send to a worker; one that is gone is noticed when it is listened to."""
    with contextlib.suppress(OSError):
        worker.line.send_bytes(message)


def serve(line: Connection, path: Path) -> None:
    """Score tasks, once the folds are there, until the other end of the line is closed."""
    tasks: deque[bytes] = deque()
    arrived = threading.Semaphore(0)
    threading.Thread(target=_listen, args=(line, path.parent, tasks.append, arrived), daemon=True).start()
    arrived.acquire()
    tasks.popleft()
    folds = CrossValidation.opened(path)
    with one_thread():
        line.send_bytes(b"{}")
        while arrived.acquire():
            line.send_bytes(_answer(folds, tasks.popleft()))


def _listen(line: Connection, folder: Path, keep: Callable[[bytes], None], arrived: threading.Semaphore) -> None:
    """Take tasks in while others are scored: a closed line ends the process in the middle of a fit.

    Whoever closed it may have been killed: the rows go with the process.
    """
    parent = os.getppid()
    try:
        # A child that the parent forked may hold the other end open.
        while os.getppid() == parent:
            if line.poll(1.0):
                keep(line.recv_bytes())
                arrived.release()
    except (EOFError, OSError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _answer(folds: CrossValidation, message: bytes) -> bytes:
    given = json.loads(message)
    against = given.pop("rival")
    if against:
        against = Rival(**{**against, "best": tuple(against["best"]), "kin": tuple(against["kin"])})
    try:
        scored = attempt(folds, Task(**given, rival=against))
    except DataError as error:
        return json.dumps({"refused": str(error)}).encode()
    told = {"scored": scored.trial.model_dump(mode="json"), "time": (scored.started, scored.seconds)}
    return json.dumps(told).encode()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]))
