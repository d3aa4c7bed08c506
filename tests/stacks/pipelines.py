"""What tests of the orchestrator ask ZenML and Prefect about runs."""

import time
from collections.abc import Sequence
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from zenml.client import Client
from zenml.models import PipelineRunResponse


def last_run(name: str) -> PipelineRunResponse:
    return Client().list_pipeline_runs(pipeline=name, sort_by="desc:created", size=1, hydrate=True).items[0]


def flow_run_of(run: PipelineRunResponse) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run.orchestrator_run_id.partition(".")[0]))


def task_runs(flow_run: FlowRun, names: Sequence[str]) -> dict[str, TaskRun]:
    """The task runs of a flow run once those named are recorded to their end; Prefect writes them a little later."""
    deadline = time.monotonic() + 20
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
