"""Dynamic pipelines: ZenML's runner, with a task run for every step that it runs in this process."""

from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner

from stacks.orchestrator.flow_run import StepStates, TaskPolicy
from stacks.orchestrator.orchestrator import STOPS, final_state, task_key

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, StepRunResponse
    from zenml.orchestrators import BaseOrchestrator


class TaskRunRunner(DynamicPipelineRunner):
    """ZenML's runner of dynamic pipelines; it decides what runs when and retries, this only keeps Prefect's record."""

    def __init__(
        self,
        snapshot: "PipelineSnapshotResponse",
        run: "PipelineRunResponse | None",
        orchestrator: "BaseOrchestrator",
        log_prints: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(snapshot=snapshot, run=run, orchestrator=orchestrator, **kwargs)
        self._log_prints = log_prints
        self._states = StepStates()

    def _run_sync_step(self, step: "Step", remaining_retries: int | None = None) -> "StepRunResponse":
        finished: list[StepRunResponse] = []

        def launch() -> State[Any] | None:
            finished.append(super(TaskRunRunner, self)._run_sync_step(step, remaining_retries))
            return final_state(finished[0])

        name = step.spec.invocation_id
        policy = TaskPolicy(log_prints=self._log_prints, stops=STOPS)
        self._states.run(name, task_key(self.snapshot, name), step.spec.upstream_steps, launch, policy)
        return finished[0]

    def _build_child_runner(self, child_run: "PipelineRunResponse") -> "TaskRunRunner":
        return TaskRunRunner(
            child_run.snapshot,
            child_run,
            self._orchestrator,
            self._log_prints,
            pause_coordinator=self._pause_coordinator,
            parent_runner=self,
        )
