"""When which step starts, with functions in place of steps."""

import signal
import threading
from collections.abc import Callable

import pytest
from zenml.enums import ExecutionMode
from zenml.exceptions import RunStoppedException

from stacks.orchestrator.schedule import Schedule

GRAPH = {"a": [], "b": [], "c": ["a"], "d": ["b", "c"], "e": ["a"]}


class Steps:
    """Notes who runs; each function may wait for others or raise."""

    def __init__(self, **work: Callable[[], None]) -> None:
        self.work = work
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.most = 0
        self.signals: list[signal.Signals] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def run(self, name: str) -> None:
        with self._lock:
            self.begun.append(name)
            self.most = max(self.most, len(self.begun) - len(self.ended))
        try:
            self.work.get(name, lambda: None)()
        finally:
            with self._lock:
                self.ended.append(name)

    def stop(self, number: signal.Signals) -> None:
        self.signals.append(number)
        self.stopped.set()


def fails() -> None:
    raise ValueError("no such luck")


def scheduled(steps: Steps, limit: int, mode: ExecutionMode = ExecutionMode.FAIL_FAST) -> Schedule:
    return Schedule(GRAPH, steps.run, steps.stop, limit, mode)


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_each_starts_after_those_before_it_and_not_too_many_at_once(limit: int) -> None:
    steps = Steps()
    scheduled(steps, limit).run(lambda: False)
    assert sorted(steps.begun) == sorted(GRAPH) and steps.most <= limit
    for name, before in GRAPH.items():
        assert all(steps.begun.index(other) < steps.begun.index(name) for other in before)


def test_what_may_run_at_once_does() -> None:
    together = threading.Barrier(3, timeout=30)
    steps = Steps(b=together.wait, c=together.wait, e=together.wait)  # type: ignore[arg-type]
    scheduled(steps, 3).run(lambda: False)
    assert steps.most == 3


def test_fail_fast_stops_the_others_and_raises() -> None:
    steps = Steps(a=fails)
    steps.work["b"] = lambda: None if steps.stopped.wait(30) else fails()
    with pytest.raises(ValueError, match="no such luck"):
        scheduled(steps, 2).run(lambda: False)
    assert sorted(steps.ended) == ["a", "b"] and steps.signals == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("mode", "ran"),
    [(ExecutionMode.STOP_ON_FAILURE, ["b", "c"]), (ExecutionMode.CONTINUE_ON_FAILURE, ["b", "c", "d"])],
)
def test_the_other_modes_let_go_on_what_may(mode: ExecutionMode, ran: list[str]) -> None:
    graph = {"a": [], "b": [], "c": [], "d": ["c"], "e": ["a"], "f": ["e"]}
    failed = threading.Event()
    steps = Steps(a=lambda: (failed.set(), fails())[0], b=lambda: None, c=lambda: None)
    schedule = Schedule(graph, steps.run, steps.stop, 3, mode)
    # `c` ends only when the schedule knows of the failure: it then has to decide about `d`.
    steps.work["c"] = lambda: _until(lambda: bool(schedule.failed))
    schedule.run(lambda: False)
    assert sorted({*steps.ended} - {"a"}) == ran and list(schedule.failed) == ["a"] and steps.signals == []


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3_000):
        if condition():
            return
        pause.wait(0.01)
    raise TimeoutError


def test_a_stop_is_raised_in_every_mode() -> None:
    def stopped() -> None:
        raise RunStoppedException("by hand")

    with pytest.raises(RunStoppedException):
        scheduled(Steps(a=stopped), 2, ExecutionMode.CONTINUE_ON_FAILURE).run(lambda: False)


def test_an_interrupt_that_python_lost_still_ends_the_run() -> None:
    steps = Steps()
    steps.work["a"] = lambda: None if steps.stopped.wait(30) else fails()
    with pytest.raises(KeyboardInterrupt):
        scheduled(steps, 2).run(lambda: "a" in steps.begun)
    assert steps.signals == [signal.SIGINT] and "c" not in steps.begun
