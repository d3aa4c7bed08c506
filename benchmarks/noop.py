"""Pipelines that do nothing, or wait; imported only when the homes are set, since it imports ZenML."""

import time

from zenml import pipeline, step

STEPS = 8
WIDTH = 4
SECONDS = 1
SPIN_SECONDS = 2


@step
def nothing() -> None:
    """No work, no artifact."""


@pipeline(enable_cache=False)
def nothing_chain() -> None:
    """Each step waits for the one before."""
    before: list[str] = []
    for number in range(STEPS):
        name = f"nothing_{number}"
        nothing(id=name, after=before)
        before = [name]


@step
def sleeper() -> None:
    """One second, no work, no artifact."""
    time.sleep(SECONDS)


@pipeline(enable_cache=False)
def fan_out() -> None:
    """None waits for another."""
    for number in range(WIDTH):
        sleeper(id=f"sleeper_{number}")


@pipeline(enable_cache=False)
def one_sleeper() -> None:
    """As little as a run can be."""
    sleeper()


@step
def spinner() -> None:
    """Two seconds of one CPU, no artifact; of CPU time, so that a busy machine does not do less of it."""
    end = time.process_time() + SPIN_SECONDS
    while time.process_time() < end:
        sum(range(10_000))


@pipeline(enable_cache=False)
def spin_out(steps: int) -> None:
    """None waits for another."""
    for number in range(steps):
        spinner(id=f"spinner_{number}")
