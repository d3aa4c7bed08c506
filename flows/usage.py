"""Where a run's time went: what the orchestrator measured of each step, in MLflow and for people."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import WorkError
from stacks import runs
from stacks.orchestrator.resources import usage_of

LOG = logging.getLogger(__name__)
FIGURES = ("seconds", "cpu_seconds", "peak_mib")


@dataclass(frozen=True)
class StepUsage:
    """What one step of a run used.

    Attributes:
        name: The step.
        status: `completed`, or `cached`.
        seconds: From its begin to its end; None, as all figures, for a cached step and one that was not measured.
        cpu_seconds: CPU time of its process and of those that it started.
        peak_mib: Most memory of them all at one moment, in MiB.
    """

    name: str
    status: str
    seconds: float | None
    cpu_seconds: float | None
    peak_mib: float | None


def step_usages(*zenml_runs: Any) -> list[StepUsage]:
    """The steps of some ZenML runs in the order in which they began."""
    steps = [step for run in zenml_runs for step in sorted(run.steps.values(), key=lambda step: step.start_time)]
    return [_usage(step) for step in steps]


def _usage(step: Any) -> StepUsage:
    used = usage_of(step)
    figures = (used.wall_seconds, used.cpu_seconds, used.peak_mib) if used else (None, None, None)
    return StepUsage(step.name, step.status.value, *figures)


def log_usages(mlflow_run_id: str, steps: Sequence[StepUsage]) -> None:
    """Write `seconds_<step>`, `cpu_seconds_<step>` and `peak_mib_<step>` of the measured steps to the model's run.

    A run that is done does not fail for want of these: what hinders is said as a warning.
    """
    metrics = {f"{figure}_{step.name}": getattr(step, figure) for step in steps for figure in FIGURES}
    try:
        runs.log_run(mlflow_run_id, metrics={name: value for name, value in metrics.items() if value is not None})
    except WorkError as error:
        LOG.warning("the steps' times are not in MLflow: %s", error)


def read_usages(metrics: dict[str, float]) -> list[StepUsage]:
    """What `log_usages` wrote, from a run's metrics: the steps' last measured figures, the longest first."""
    names = [name.removeprefix("seconds_") for name in metrics if name.startswith("seconds_")]
    found = [StepUsage(n, "completed", *(metrics.get(f"{figure}_{n}") for figure in FIGURES)) for n in names]
    return sorted(found, key=lambda step: -(step.seconds or 0.0))


def time_line(steps: Sequence[StepUsage]) -> str:
    """One line of where the time went: the steps that were measured, the longest first, and the largest memory."""
    measured = sorted((step for step in steps if step.seconds is not None), key=lambda step: -(step.seconds or 0.0))
    if not measured:
        return ""
    largest = max(measured, key=lambda step: step.peak_mib or 0.0)
    times = ", ".join(f"{step.name} {step.seconds:.1f} s" for step in measured)
    cached = ", ".join(step.name for step in steps if step.status == "cached")
    memory = f"; most memory: {largest.peak_mib:,.0f} MiB in {largest.name}" if largest.peak_mib else ""
    return f"{times}{f'; cached: {cached}' if cached else ''}{memory}"
