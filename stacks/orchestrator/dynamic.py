"""Dynamic pipelines: ZenML's runner, with a task run for every step that it runs in this process."""

from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner

from stacks.orchestrator.flavor import PrefectOrchestratorSettings
from stacks.orchestrator.flow_run import StepStates
from stacks.orchestrator.orchestrator import final_state, task_key, task_policy

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
        settings: PrefectOrchestratorSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(snapshot=snapshot, run=run, orchestrator=orchestrator, **kwargs)
        self._settings = settings
        self._states = StepStates()

    def _run_sync_step(self, step: "Step", remaining_retries: int | None = None) -> "StepRunResponse":
        finished: list[StepRunResponse] = []

        def launch() -> State[Any] | None:
            finished.append(super(TaskRunRunner, self)._run_sync_step(step, remaining_retries))
            return final_state(finished[0].status)

        name = step.spec.invocation_id
        key = task_key(self.snapshot, name)
        self._states.run(name, key, step.spec.upstream_steps, launch, task_policy(self._settings))
        return finished[0]

    def _build_child_runner(self, child_run: "PipelineRunResponse") -> "TaskRunRunner":
        return TaskRunRunner(
            child_run.snapshot,
            child_run,
            self._orchestrator,
            self._settings,
            pause_coordinator=self._pause_coordinator,
            parent_runner=self,
        )
