"""What tests of the orchestrator ask ZenML and Prefect about runs, and how the steps of these runs leave notes."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterTaskRunId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import LogSort
from zenml.client import Client
from zenml.models import PipelineRunResponse, StepRunResponse


def last_run(name: str) -> PipelineRunResponse:
    return Client().list_pipeline_runs(pipeline=name, sort_by="desc:created", size=1, hydrate=True).items[0]


def flow_run_of(run: PipelineRunResponse) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run.orchestrator_run_id.partition(".")[0]))


def task_runs(flow_run: FlowRun, names: Sequence[str]) -> dict[str, TaskRun]:
    """The task runs of a flow run once those named are recorded to their end; Prefect writes them a little later."""
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
        done = {run.name: run for run in found if run.state and run.state.is_final()}
        if set(names) <= set(done) or time.monotonic() > deadline:
            assert sorted(run.name for run in found) == sorted(names)
            return done
        time.sleep(0.05)


def statuses(run: PipelineRunResponse) -> dict[str, str]:
    return {name: str(step_run.status) for name, step_run in run.steps.items()}


def leave(name: str, text: object = "") -> None:
    """Leave a note, whole at once."""
    path = Path(os.environ["NOTES"]) / name
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(str(text))
    draft.replace(path)


def find(name: str, seconds: float = 120) -> str:
    """Wait for another step's note."""
    path = Path(os.environ["NOTES"]) / name
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no note '{name}'"
        time.sleep(0.02)
    return path.read_text()


def stored(step_run: StepRunResponse) -> list[str]:
    """Messages of the step's log in ZenML, in order."""
    (log,) = [log for log in step_run.log_collection or [] if log.source == "step"]
    return [entry.message for entry in Client().active_stack.log_store.fetch(log, limit=2_000).items]


def sent(task: TaskRun, wanted: str) -> list[str]:
    """Messages of the task run's log in Prefect, in order, once the wanted one is there."""
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            chosen = LogFilter(task_run_id=LogFilterTaskRunId(any_=[task.id]))
            logs = [log.message for log in client.read_logs(chosen, sort=LogSort.TIMESTAMP_ASC)]
        if wanted in logs or time.monotonic() > deadline:
            return logs
        time.sleep(0.2)
