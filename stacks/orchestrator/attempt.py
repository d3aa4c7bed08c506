"""One attempt at a step, the same wherever it runs: measured, recorded, and never left waiting for a retry."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING
from uuid import UUID

from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.config.step_run_info import StepRunInfo
from zenml.enums import ExecutionStatus
from zenml.exceptions import RunInterruptedException, RunStoppedException
from zenml.execution.step.utils import launch_step
from zenml.logger import logging_context
from zenml.models import StepRunUpdate
from zenml.orchestrators import input_utils, output_utils, publish_utils
from zenml.orchestrators.signal_handler import SignalHandler
from zenml.orchestrators.step_runner import StepRunner
from zenml.stack import Stack
from zenml.steps.heartbeat import StepHeartBeatTerminationException

from stacks.orchestrator.resources import attach, measured

if TYPE_CHECKING:
    from zenml.models import PipelineSnapshotResponse, StepRunResponse

STOPS = (RunStoppedException, RunInterruptedException, StepHeartBeatTerminationException)

step_begins: ContextVar[Callable[[UUID], None] | None] = ContextVar("prefect_orchestrator_step_begins", default=None)
"""Told the id of ZenML's record of the step when its function is about to run here."""

signals_ready: ContextVar[Callable[[], None] | None] = ContextVar("prefect_orchestrator_signals_ready", default=None)
"""Called when ZenML's signal handlers are in place for a step that is about to run here."""


def attempt(snapshot: "PipelineSnapshotResponse", name: str, orchestrator_run_id: str) -> "StepRunResponse":
    """Run a step of a static pipeline once, here, and write down what it used.

    Args:
        snapshot: The pipeline's snapshot, with at least this step's configuration.
        name: Name of the step.
        orchestrator_run_id: The same for all steps of the run and their retries.

    Returns:
        ZenML's record of the step, which may have been cached.

    Raises:
        BaseException: What the step raised; one of `STOPS` when somebody stopped it.
    """
    try:
        with measured() as usage, logging_context(step=name):
            step_run = launch_step(
                snapshot=snapshot,
                step=snapshot.step_configurations[name],
                orchestrator_run_id=orchestrator_run_id,
                # Prefect retries, so that its record of the task run has them.
                retry=False,
            )
    except BaseException as error:
        stop = _stop_behind(error)
        if stop or isinstance(error, STOPS) or not isinstance(error, Exception):
            end_retries(snapshot, name)
        if stop:
            raise stop from None
        raise
    attach(step_run, usage())
    return step_run


def isolated_attempt(snapshot: "PipelineSnapshotResponse", step_run_id: UUID) -> "StepRunResponse":
    """Run an isolated step of a dynamic pipeline, which ZenML has begun a record of, here.

    Args:
        snapshot: The pipeline's snapshot.
        step_run_id: ZenML's record of the step.

    Returns:
        The finished record.

    Raises:
        BaseException: What the step raised; one of `STOPS` when somebody stopped it.
    """
    store = Client().zen_store
    step_run = store.update_run_step(step_run_id, StepRunUpdate(status=ExecutionStatus.RUNNING))
    run = Client().get_pipeline_run(step_run.pipeline_run_id)
    step = Step(spec=step_run.spec, config=step_run.config, step_config_overrides=step_run.config)
    assert snapshot.stack is not None
    stack = Stack.from_model(snapshot.stack)
    info = StepRunInfo(
        config=step.config,
        spec=step.spec,
        snapshot=snapshot,
        step_run=step_run,
        pipeline=snapshot.pipeline_configuration,
        run_name=run.name,
        pipeline_step_name=step_run.name,
        run_id=run.id,
        step_run_id=step_run.id,
        force_write_logs=lambda: None,
    )
    mode = snapshot.pipeline_configuration.execution_mode
    try:
        with measured() as usage, logging_context(step=step_run.name), SignalHandler(step_run, mode):
            # With parameters that are loaded when the step runs.
            input_utils.resolve_step_inputs(step=step, pipeline_run=run)
            finished = StepRunner(step=step, stack=stack).run(
                pipeline_run=run,
                step_run=step_run,
                input_artifacts=step_run.regular_inputs,
                output_artifact_uris=output_utils.prepare_output_artifact_uris(step_run, stack, step),
                step_run_info=info,
            )
    except BaseException as error:
        if stop := _stop_behind(error):
            raise stop from None
        raise
    attach(finished, usage())
    return finished


def end_retries(snapshot: "PipelineSnapshotResponse", step_name: str) -> None:
    """Stop a step that ZenML holds for one that is about to be retried, when the run was interrupted instead."""
    steps = Client().list_run_steps(name=step_name, snapshot_id=snapshot.id, status=ExecutionStatus.RETRYING)
    for step_run in steps.items:
        # ZenML turns a failure into "retrying" as long as retries are left.
        publish_utils.publish_step_run_status_update(step_run.id, ExecutionStatus.STOPPED)


def _stop_behind(error: BaseException) -> RunStoppedException | None:
    """The stop that a step ended with in other words: ZenML may refuse to note it as failed, as it is stopped already,
    and a handler of the caller's may make an interrupt of it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, RunStoppedException):
        seen = seen.__cause__ or seen.__context__
    return seen
