"""Dask workers that score configurations: each has the folds, and prepares and bins them once for itself."""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from steps.cluster import Cluster
from steps.crossval import CrossValidation
from steps.trials import Scored, Task, Trial, attempt

if TYPE_CHECKING:
    from distributed import Future

GONE = "the Dask worker that scored it was lost; was there too little memory?"


class DaskScorers:
    """Trials as tasks of a Dask cluster; what `steps.scorers.Scorers` does with processes.

    A task whose worker is lost is a failed trial.
    """

    def __init__(self, dask: Cluster, folds: CrossValidation, count: int) -> None:
        """Take no task before `begin`.

        Args:
            dask: The workers.
            folds: The folds.
            count: How many tasks run at once.
        """
        self._dask, self._folds, self._count = dask, folds, count
        self._shared: Any = None
        self._tasks: dict[Future, Task] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Give every worker the folds."""
        with self._dask.telling():
            self._shared = self._dask.client.scatter(self._folds, broadcast=True, hash=False)

    def close(self) -> None:
        """Drop what is under way; twice is once."""
        self._dask.client.cancel(list(self._tasks))
        self._tasks, self._shared = {}, None

    @property
    def room(self) -> int:
        """How many more tasks to have: one for each worker, and one that waits."""
        return 2 * self._count - len(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether any task is under way."""
        return bool(self._tasks)

    def submit(self, task: Task) -> None:
        """Have a task scored."""
        self._tasks[self._dask.client.submit(attempt, self._shared, task, pure=False)] = task

    def collect(self, seconds: float) -> list[Scored]:
        """What was finished; waits for the first, but no longer than `seconds`.

        Raises:
            DataError: No fold allows the metric.
            WorkError: The scheduler was lost.
        """
        done = self._finished(max(seconds, 0.01))
        return [self._scored(future, self._tasks.pop(future)) for future in done]

    def _finished(self, seconds: float) -> Sequence["Future"]:
        from distributed import wait

        with self._dask.telling():
            try:
                return self._in_order(wait(list(self._tasks), timeout=seconds, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                return []

    def _in_order(self, done: Iterable["Future"]) -> list["Future"]:
        return sorted(done, key=lambda future: self._tasks[future].number)

    def _scored(self, future: "Future", task: Task) -> Scored:
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        with self._dask.telling():
            try:
                found: Scored = future.result()
            except (KilledWorker, MemoryError, FutureCancelledError):
                trial = Trial(number=task.number, family=task.family, params=task.params, score=None, failure=GONE)
                found = Scored(trial, time.time(), 0.0)
        return found
