"""What a Prefect worker starts for a submitted or scheduled run: a flow that is told ids and asks ZenML for the rest.

The worker's process (or container) needs ZenML's store and Prefect's API in its environment, this package, and the
code of the steps: on a process pool from the run's folder, in a container from the image. The run then goes on exactly
as one in the caller's process, inside the flow run that the worker started.
"""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow, get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled
from zenml.client import Client
from zenml.constants import ENV_ZENML_ACTIVE_STACK_ID
from zenml.enums import ExecutionStatus
from zenml.execution.pipeline.utils import prevent_pipeline_execution
from zenml.integrations.registry import integration_registry
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.stack import Stack
from zenml.utils import source_utils
from zenml.utils.env_utils import temporary_environment

from stacks.orchestrator.attempt import signals_ready
from stacks.orchestrator.flow_run import current_flow_run_id
from stacks.orchestrator.outcome import fail_run, publish_stopping, stop_run

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

logger = logging.getLogger(__name__)

CANCELLED = "It was cancelled in Prefect."
LOOK_SECONDS = 10.0


@flow(name="zenml-run", retries=0, validate_parameters=False, persist_result=False)
def zenml_run(snapshot_id: str, run_id: str | None = None) -> State[Any] | None:
    """Execute a ZenML run here.

    Args:
        snapshot_id: ZenML's snapshot of the pipeline.
        run_id: ZenML's run of it; left out, or finished already (a schedule fired, or somebody retried the flow run in
            Prefect), a new one is made.
    """
    flow_run_id = current_flow_run_id()
    assert flow_run_id is not None
    _find_sources(Path.cwd())
    with prevent_pipeline_execution():
        snapshot = Client().zen_store.get_snapshot(UUID(snapshot_id))
        if snapshot.is_dynamic:
            # What it calls is compiled here, with whatever materializers there are; of the others that is done.
            integration_registry.activate_integrations()
        run = _run_of(snapshot, UUID(run_id) if run_id else None)
        if run.status == ExecutionStatus.STOPPING:
            stop_run(run.id, "It was stopped before a worker took it.")
            return Cancelled(message="The run was stopped in ZenML before a worker took it.")
        _take_skipped_out(snapshot, run)
        assert snapshot.stack is not None
        with temporary_environment({ENV_ZENML_ACTIVE_STACK_ID: str(snapshot.stack.id)}):
            return _execute(snapshot, run, flow_run_id)


def _find_sources(folder: Path) -> None:
    """Have ZenML look for the steps' modules in the folder that the job runs in, as in the image of a container."""
    source_utils.set_custom_source_root(str(folder))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _run_of(snapshot: "PipelineSnapshotResponse", run_id: UUID | None) -> "PipelineRunResponse":
    if run_id is not None and not (run := Client().get_pipeline_run(run_id)).status.is_finished:
        return run
    return create_placeholder_run(snapshot)


def _take_skipped_out(snapshot: "PipelineSnapshotResponse", run: "PipelineRunResponse") -> None:
    """Of a replayed run, leave out the steps that were recorded as skipped when it was submitted."""
    if run.original_run is None or snapshot.is_dynamic:
        return
    skipped = Client().list_run_steps(pipeline_run_id=run.id, status=ExecutionStatus.SKIPPED, size=500).items
    names = {step_run.name for step_run in skipped}
    for name in names & snapshot.step_configurations.keys():
        del snapshot.step_configurations[name]
    for step in snapshot.step_configurations.values():
        step.spec.upstream_steps[:] = [other for other in step.spec.upstream_steps if other not in names]
    # Else ZenML records them again.
    run.get_resources().original_run = None


def _execute(snapshot: "PipelineSnapshotResponse", run: "PipelineRunResponse", flow_run_id: UUID) -> State[Any] | None:
    """Execute the run; the state that its flow run is to have, None for Prefect's own."""
    stack = Stack.from_model(snapshot.stack)

    def tell_zenml() -> None:
        if _is_cancelled(flow_run_id):
            publish_stopping(run.id, CANCELLED)

    try:
        with _before_sigterm(tell_zenml):
            stack.prepare_pipeline_submission(snapshot)
            stack.submit_pipeline(snapshot=snapshot, placeholder_run=run)
    except BaseException as error:
        if _close(run.id, flow_run_id, error) and isinstance(error, Exception):
            return Cancelled(message=CANCELLED)
        raise
    return None


def _close(run_id: UUID, flow_run_id: UUID, error: BaseException) -> bool:
    """End ZenML's record of a run that did not complete; whether it is because somebody cancelled it."""
    try:
        if _is_cancelled(flow_run_id):
            stop_run(run_id, CANCELLED)
            return True
        fail_run(run_id, f"{type(error).__name__}: {error}")
    except Exception as problem:
        # Who asks for the run's status, or waits for it, does it then.
        logger.warning("How the run ended could not be written to ZenML: %s", problem)
    return False


@contextmanager
def _before_sigterm(tell: Callable[[], None]) -> Iterator[None]:
    """Have ZenML told that the run is being stopped before SIGTERM ends a step, here or in a process of its own.

    A worker ends a cancelled run by that signal, and ZenML's handler, which it puts in place when a step begins, would
    count the step as failed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def put_in_front() -> None:
        previous = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            try:
                tell()
            except Exception as error:
                logger.warning("Whether the run was cancelled could not be told: %s", error)
            if callable(previous):
                previous(number, frame)

        signal.signal(signal.SIGTERM, handle)

    before = signal.getsignal(signal.SIGTERM)
    put_in_front()
    token = signals_ready.set(put_in_front)
    try:
        yield
    finally:
        signals_ready.reset(token)
        signal.signal(signal.SIGTERM, before)


def _is_cancelled(flow_run_id: UUID) -> bool:
    # A client of its own: the signal may have come in the middle of another's request.
    with get_client(httpx_settings={"timeout": LOOK_SECONDS}, sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())
