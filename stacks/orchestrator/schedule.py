"""When which step starts: as soon as those before it are done, at most so many at once."""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

from zenml.enums import ExecutionMode

from stacks.orchestrator.attempt import STOPS

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
GRACE_SECONDS = 15.0


class Schedule:
    """Runs steps in threads of this process, which wait for those of their own.

    The modes are as in ZenML's Kubernetes orchestrator. Fail-fast: the first failure stops the steps that are running
    and is raised. Stop-on-failure: they go on to their end, but none is started any more. Continue-on-failure: only
    steps that come after the failed one are skipped.

    Attributes:
        failed: What failed steps raised, by name, in the order of their ends.
    """

    def __init__(
        self,
        graph: Mapping[str, Sequence[str]],
        run: Callable[[str], None],
        stop: Callable[[signal.Signals], None],
        limit: int,
        mode: ExecutionMode,
    ) -> None:
        """Plan a run.

        Args:
            graph: For each step those that it comes after; earlier ones first.
            run: Runs a step to its end; called in a thread, with a copy of this context.
            stop: Sends a signal to all steps that are running, and keeps others from starting.
            limit: How many steps may run at once.
            mode: What a failure means for the others.
        """
        self.failed: dict[str, Exception] = {}
        self._graph = graph
        self._run = run
        self._stop = stop
        self._limit = limit
        self._mode = mode
        self._waiting = list(graph)
        self._running: dict[Future[None], str] = {}
        self._done: set[str] = set()
        self._skipped: set[str] = set()

    def run(self, interrupted: Callable[[], bool], ending: Callable[[], bool] = lambda: False) -> None:
        """Run all steps; the failed ones are in `failed`.

        Args:
            interrupted: Whether Ctrl-C came; Python may drop its exception.
            ending: Whether no further step is to start; those that run come to their end.

        Raises:
            BaseException: What a step raised in fail-fast mode, a stop, or an interrupt.
        """
        with ThreadPoolExecutor(self._limit, thread_name_prefix="step") as threads:
            try:
                while self._running or (self._waiting and not ending()):
                    if interrupted():
                        raise KeyboardInterrupt
                    if not ending():
                        self._start(threads)
                    for future in wait(self._running, LOOK_SECONDS, FIRST_COMPLETED).done:
                        self._account(self._running.pop(future), future.exception())
            except BaseException as reason:
                self._wind_down(signal.SIGINT if isinstance(reason, KeyboardInterrupt) else signal.SIGTERM)
                raise

    def _start(self, threads: ThreadPoolExecutor) -> None:
        for name in list(self._waiting):
            blocked = [other for other in self._graph[name] if other in self._skipped or other in self.failed]
            if blocked or (self.failed and self._mode == ExecutionMode.STOP_ON_FAILURE):
                logger.warning("Skipping step %s after failed or skipped %s.", name, ", ".join(blocked or self.failed))
                self._skipped.add(name)
            elif len(self._running) < self._limit and self._done.issuperset(self._graph[name]):
                self._running[threads.submit(copy_context().run, self._run, name)] = name
            else:
                continue
            self._waiting.remove(name)

    def _account(self, name: str, error: BaseException | None) -> None:
        if error is None:
            self._done.add(name)
        elif not isinstance(error, Exception) or isinstance(error, STOPS) or self._mode == ExecutionMode.FAIL_FAST:
            raise error
        else:
            self.failed[name] = error

    def _wind_down(self, number: signal.Signals) -> None:
        """End what runs: by asking, then by force."""
        for each, seconds in ((number, GRACE_SECONDS), (signal.SIGKILL, None)):
            try:
                self._stop(each)
                if not wait(self._running, seconds).not_done:
                    return
            except KeyboardInterrupt:
                # Somebody is impatient.
                continue
