"""Dynamic pipelines: ZenML's runner decides what runs when; Prefect sees the pipeline as a task, and isolated steps.

Inline steps run in the task that is named after the pipeline, in ZenML's threads; an isolated step is a task run of
its own inside that one. A nested pipeline is a task named after it, with the same rules.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from prefect.transactions import BaseTransaction
from zenml.execution.pipeline.dynamic.outputs import _IsolatedStepFuture
from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner
from zenml.steps.step_context import RunContext

from stacks.orchestrator.attempt import STOPS
from stacks.orchestrator.flow_run import StepStates, TaskPolicy
from stacks.orchestrator.isolated import IsolatedSteps, isolated_steps
from stacks.orchestrator.orchestrator import Active, PrefectOrchestrator
from stacks.orchestrator.stop import current_watch

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, StepRunResponse
    from zenml.orchestrators import BaseOrchestrator


class TaskRunRunner(DynamicPipelineRunner):
    """ZenML's runner of dynamic pipelines, run as a task, and woken when an isolated step has ended."""

    def __init__(
        self,
        snapshot: "PipelineSnapshotResponse",
        run: "PipelineRunResponse | None",
        orchestrator: "BaseOrchestrator",
        isolated: IsolatedSteps,
        policy: TaskPolicy,
        **kwargs: Any,
    ) -> None:
        super().__init__(snapshot=snapshot, run=run, orchestrator=orchestrator, **kwargs)
        self._isolated = isolated
        self._policy = policy
        # ZenML's own look at its steps comes every ten seconds.
        isolated.told.append(self._monitoring_event.set)

    def run_pipeline(self) -> None:
        """Run the pipeline to its end, in a task run of its name."""
        name = self.snapshot.pipeline_configuration.name

        def work() -> State[Any] | None:
            with _no_transaction(), _own_run_context() if self._parent_runner else nullcontext():
                super(TaskRunRunner, self).run_pipeline()
            return None

        StepStates().run(name, name, (), work, self._policy)

    def _queue_concurrent_isolated_step(self, step: "Step") -> _IsolatedStepFuture:
        future = super()._queue_concurrent_isolated_step(step)
        future.__class__ = _PromptFuture
        return future

    def launch_step(self, *args: Any, **kwargs: Any) -> Any:
        """Launch a step, unless somebody wants no further one to start."""
        if (watch := current_watch.get()) is not None:
            watch.raise_if_graceful()
        return super().launch_step(*args, **kwargs)

    def _abort_and_drain(self, exception: BaseException) -> None:
        if isinstance(exception, STOPS) or not isinstance(exception, Exception):
            # Without this an interrupt would wait for isolated steps in a mode that goes on after failures.
            self._on_failure_detected(exception=exception)
            self._isolated.stop_all()
        super()._abort_and_drain(exception)

    def _build_child_runner(self, child_run: "PipelineRunResponse") -> "TaskRunRunner":
        assert child_run.snapshot is not None
        return TaskRunRunner(
            child_run.snapshot,
            child_run,
            self._orchestrator,
            self._isolated,
            self._policy,
            pause_coordinator=self._pause_coordinator,
            parent_runner=self,
        )


class _PromptFuture(_IsolatedStepFuture):
    """Waits for the step's process first: ZenML's own looks at the record get up to a minute apart."""

    def _wait_for_step_to_finish(self) -> "StepRunResponse":
        steps = isolated_steps.get()
        if steps is not None and self._wrapped is not None:
            steps.await_end(self._wrapped.result().id)
        return super()._wait_for_step_to_finish()


def run_dynamic(
    orchestrator: PrefectOrchestrator,
    snapshot: "PipelineSnapshotResponse",
    run: "PipelineRunResponse | None",
    active: Active,
    policy: TaskPolicy,
) -> None:
    """Run a dynamic pipeline to its end, here.

    Args:
        orchestrator: Of the stack.
        snapshot: The pipeline's snapshot.
        run: ZenML's run.
        active: The same run as the orchestrator knows it.
        policy: How the pipeline and its isolated steps are run as tasks.

    Raises:
        BaseException: What made the run fail.
    """
    isolated = IsolatedSteps(orchestrator.config, active, policy)
    token = isolated_steps.set(isolated)
    try:
        TaskRunRunner(snapshot, run, orchestrator, isolated, policy).run_pipeline()
    finally:
        isolated.stop_all()
        isolated_steps.reset(token)


@contextmanager
def _own_run_context() -> Iterator[None]:
    """Let a nested pipeline's init and cleanup hooks run: ZenML has one run context a process, and would clear the
    outer pipeline's, whose cleanup hook then never runs."""
    outer = RunContext._instance()
    RunContext._clear()
    try:
        yield
    finally:
        RunContext._clear(outer)


@contextmanager
def _no_transaction() -> Iterator[None]:
    """Keep Prefect from calling tasks inside a failed one rolled back, whatever their own state was."""
    token = BaseTransaction.__var__.set(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        BaseTransaction.__var__.reset(token)
