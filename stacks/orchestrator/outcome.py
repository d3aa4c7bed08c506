"""What Prefect's states mean in ZenML, and how ZenML's record of a run is ended that its process left open.

A submitted run may end where no code of ours runs: cancelled before a worker took it, its job killed, its worker lost.
Who asks for its status, waits for it, or starts the next run there writes the end into both records.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.orchestrators import publish_utils
from zenml.utils.pagination_utils import depaginate

logger = logging.getLogger(__name__)

HEARTBEAT = "prefect.flow-run.heartbeat"
MISSED = 3
DEFAULT_HEARTBEAT_SECONDS = 180
# ZenML takes no longer reason of a run's status.
REASON_LENGTH = 255
STATUS = {
    StateType.SCHEDULED: ExecutionStatus.INITIALIZING,
    StateType.PENDING: ExecutionStatus.INITIALIZING,
    StateType.RUNNING: ExecutionStatus.RUNNING,
    StateType.PAUSED: ExecutionStatus.PAUSED,
    StateType.CANCELLING: ExecutionStatus.STOPPING,
    StateType.CANCELLED: ExecutionStatus.STOPPED,
    StateType.CRASHED: ExecutionStatus.FAILED,
    StateType.FAILED: ExecutionStatus.FAILED,
    StateType.COMPLETED: ExecutionStatus.COMPLETED,
}
NAMED = {"Cached": ExecutionStatus.CACHED, "AwaitingRetry": ExecutionStatus.RETRYING}


def status_of(state: State[Any] | None) -> ExecutionStatus:
    """The status that a flow run's or task run's state is in ZenML.

    Late and scheduled ones wait to be started, suspended ones are paused, crashed ones failed; of task runs, cached and
    waiting for a retry are statuses of their own.
    """
    if state is None:
        return ExecutionStatus.INITIALIZING
    return NAMED.get(state.name or "", STATUS[state.type])


def end_run(run_id: UUID, state: State[Any]) -> None:
    """End ZenML's record of a run, and of its steps, as its flow run has ended; one that is finished stays as it is."""
    if Client().get_pipeline_run(run_id, hydrate=False).status.is_finished:
        return
    reason = f"Prefect's flow run is {state.name}: {state.message or 'without a message'}"[:REASON_LENGTH]
    if state.is_cancelled():
        stop_run(run_id, reason)
    elif not state.is_completed():
        fail_run(run_id, reason)


def fail_run(run_id: UUID, reason: str) -> None:
    """End ZenML's record of a run that nobody executes any more: the run failed, its open steps were stopped."""
    reason = reason[:REASON_LENGTH]
    # The run first: of a stopped step alone ZenML would make a stopped run.
    if not Client().get_pipeline_run(run_id, hydrate=False).status.is_finished:
        publish_utils.publish_pipeline_run_status_update(run_id, ExecutionStatus.FAILED, status_reason=reason)
    _stop_open_steps(run_id)


def stop_run(run_id: UUID, reason: str) -> None:
    """End ZenML's record of a run that somebody stopped, in Prefect or in ZenML, and of its steps."""
    client = Client()
    reason = reason[:REASON_LENGTH]
    publish_stopping(run_id, reason)
    _stop_open_steps(run_id)
    run = client.get_pipeline_run(run_id)
    if not run.status.is_finished:
        # Of a static pipeline ZenML makes a stopped run when it is stopping and no step is open.
        dynamic = bool(run.snapshot and run.snapshot.is_dynamic)
        status = ExecutionStatus.STOPPED if dynamic else ExecutionStatus.STOPPING
        publish_utils.publish_pipeline_run_status_update(run_id, status, status_reason=reason)


def publish_stopping(run_id: UUID, reason: str) -> None:
    """Tell ZenML that a run is being stopped, so that steps that a signal ends count as stopped, not as failed."""
    if not Client().get_pipeline_run(run_id, hydrate=False).status.is_finished:
        publish_utils.publish_pipeline_run_status_update(run_id, ExecutionStatus.STOPPING, status_reason=reason)


def _stop_open_steps(run_id: UUID) -> None:
    for step_run in depaginate(Client().list_run_steps, pipeline_run_id=run_id):
        if not step_run.status.is_finished:
            publish_utils.publish_step_run_status_update(step_run.id, ExecutionStatus.STOPPED)


def heartbeat_seconds() -> float:
    """How often a flow run gives a sign; ask outside of `prefect_api`, which switches the signs of this process off."""
    return max(PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or 0, DEFAULT_HEARTBEAT_SECONDS)


def silent_since(client: SyncPrefectClient, flow_run: FlowRun, every: float) -> datetime | None:
    """When a flow run that Prefect holds for running gave its last sign, if that is too long ago to be alive.

    Args:
        client: Prefect's.
        flow_run: As Prefect has it.
        every: Seconds between its signs.

    Returns:
        The time of its last heartbeat when three are missing; None while it may be alive, or where it sends none.
    """
    if flow_run.state is None or not flow_run.state.is_running():
        return None
    limit = datetime.now(UTC) - timedelta(seconds=MISSED * every)
    if flow_run.state.timestamp > limit:
        return None
    beats = client.read_events(
        EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{flow_run.id}"]),
        ),
        limit=1,
    ).events
    return beats[0].occurred if beats and beats[0].occurred < limit else None
