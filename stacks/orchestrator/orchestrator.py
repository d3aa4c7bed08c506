"""The orchestrator: a ZenML run as a Prefect flow run, its steps as task runs, one after another in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import Flow, Task, get_client
from prefect import tags as prefect_tags
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Completed
from zenml.client import Client
from zenml.config.base_settings import BaseSettings
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID, METADATA_ORCHESTRATOR_URL
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.exceptions import RunInterruptedException, RunStoppedException
from zenml.execution.context import setup_execution_context
from zenml.execution.step.utils import launch_step
from zenml.logger import get_logger
from zenml.metadata.metadata_types import MetadataType, Uri
from zenml.models import PipelineRunUpdate
from zenml.orchestrators import BaseOrchestrator, SubmissionResult
from zenml.utils.env_utils import temporary_environment

from stacks.orchestrator.flavor import PrefectOrchestratorConfig, PrefectOrchestratorSettings
from stacks.orchestrator.server import ensure_server, public_url

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
    from zenml.stack import Stack

logger = get_logger(__name__)

STATUS = {
    StateType.COMPLETED: ExecutionStatus.COMPLETED,
    StateType.FAILED: ExecutionStatus.FAILED,
    StateType.CRASHED: ExecutionStatus.FAILED,
    StateType.CANCELLED: ExecutionStatus.STOPPED,
    StateType.CANCELLING: ExecutionStatus.STOPPING,
}


@dataclass(frozen=True)
class _Active:
    """The run that the current context executes."""

    orchestrator_run_id: str
    flow_run_url: str


_active: ContextVar[_Active | None] = ContextVar("prefect_orchestrator_run", default=None)


class PrefectOrchestrator(BaseOrchestrator):
    """Runs ZenML pipelines as Prefect flows, in the calling process, one step at a time.

    Called inside a Prefect flow run, the steps become task runs of that flow run; else each ZenML run is a flow run of
    its own, on the API that Prefect is configured for or on a server of the Prefect home that is started if need be.
    """

    @property
    def config(self) -> PrefectOrchestratorConfig:
        """The component's configuration."""
        return cast(PrefectOrchestratorConfig, self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """The settings that pipelines may give."""
        return PrefectOrchestratorSettings

    @property
    def run_init_cleanup_at_step_level(self) -> bool:
        """Whether init and cleanup hooks run around each step: no, all steps share this process and its context."""
        return False

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        """All of ZenML's execution modes."""
        return [ExecutionMode.FAIL_FAST, ExecutionMode.STOP_ON_FAILURE, ExecutionMode.CONTINUE_ON_FAILURE]

    def get_orchestrator_run_id(self) -> str:
        """The id of the run that is being executed, the same for all its steps and their retries.

        Raises:
            RuntimeError: No run is being executed here.
        """
        if (active := _active.get()) is None:
            raise RuntimeError("no pipeline is running on this orchestrator here, so there is no run id")
        return active.orchestrator_run_id

    def get_pipeline_run_metadata(self, run_id: UUID) -> dict[str, MetadataType]:  # noqa: ARG002
        """The link from ZenML's run to Prefect's; ZenML asks when the first step starts."""
        if (active := _active.get()) is None:
            return {}
        return {
            METADATA_ORCHESTRATOR_URL: Uri(active.flow_run_url),
            METADATA_ORCHESTRATOR_RUN_ID: active.orchestrator_run_id,
        }

    def submit_pipeline(
        self,
        snapshot: "PipelineSnapshotResponse",
        stack: "Stack",  # noqa: ARG002
        base_environment: dict[str, str],  # noqa: ARG002
        step_environments: dict[str, dict[str, str]],
        placeholder_run: "PipelineRunResponse | None" = None,
    ) -> SubmissionResult:
        """Run the pipeline to its end.

        Returns:
            A result with nothing to wait for: the run is over, its links are published.

        Raises:
            RuntimeError: The snapshot has a schedule, or steps failed in a mode that goes on after failures.
            BaseException: What the failed step raised, in fail-fast mode.
        """
        if snapshot.schedule:
            raise RuntimeError(
                "the prefect orchestrator runs pipelines in the calling process and takes no ZenML schedule; "
                "schedule a Prefect deployment of a flow that calls the pipeline instead"
            )
        settings = cast(PrefectOrchestratorSettings, self.get_settings(snapshot))

        def work() -> None:
            with _claimed(snapshot, placeholder_run):
                self._run_pipeline(snapshot, step_environments, settings)

        name = snapshot.pipeline_configuration.name
        run_tags = [*settings.tags, *([str(placeholder_run.id)] if placeholder_run else [])]
        _in_flow_run(work, name, placeholder_run.name if placeholder_run else name, run_tags)
        return SubmissionResult()

    def fetch_status(
        self, run: "PipelineRunResponse", include_steps: bool = False
    ) -> tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]:
        """Read from Prefect how a run stands; a run whose flow run has ended cannot be running any more.

        Returns:
            The run's status (None: as ZenML has it) and, when asked for, that of its steps by name.

        Raises:
            RuntimeError: The run never reached this orchestrator, or Prefect no longer knows it.
        """
        if not run.orchestrator_run_id:
            raise RuntimeError(f"run '{run.name}' has no orchestrator run id: it was not submitted")
        flow_run_id = UUID(run.orchestrator_run_id.partition(".")[0])
        with _prefect_api(), get_client(sync_client=True) as client:
            try:
                flow_run = client.read_flow_run(flow_run_id)
            except ObjectNotFound:
                raise RuntimeError(f"Prefect has no flow run {flow_run_id}, which run '{run.name}' names") from None
            task_runs = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
                task_run_filter=TaskRunFilter(tags=TaskRunFilterTags(all_=[str(run.id)])),
            )
        steps = {task_run.name: _status(task_run.state) for task_run in task_runs} if include_steps else None
        return _run_status(flow_run, task_runs, run), steps

    def _run_pipeline(
        self,
        snapshot: "PipelineSnapshotResponse",
        environments: dict[str, dict[str, str]],
        settings: PrefectOrchestratorSettings,
    ) -> None:
        self.run_init_hook(snapshot=snapshot)
        try:
            with setup_execution_context():
                self._run_steps(snapshot, environments, settings)
        finally:
            self.run_cleanup_hook(snapshot=snapshot)

    def _run_steps(
        self,
        snapshot: "PipelineSnapshotResponse",
        environments: dict[str, dict[str, str]],
        settings: PrefectOrchestratorSettings,
    ) -> None:
        mode = snapshot.pipeline_configuration.execution_mode
        states: dict[str, State[Any]] = {}
        failed: list[str] = []
        skipped: set[str] = set()
        for name, step in snapshot.step_configurations.items():
            blocked = [other for other in step.spec.upstream_steps if other in skipped or other in failed]
            if blocked or (failed and mode == ExecutionMode.STOP_ON_FAILURE):
                reason = ", ".join(blocked or failed)
                logger.warning("Skipping step %s: %s failed or was skipped (%s).", name, reason, mode)
                skipped.add(name)
                continue
            upstream = [states[other] for other in step.spec.upstream_steps if other in states]
            try:
                with temporary_environment(environments[name]):
                    states[name] = self._run_as_task(snapshot, name, step, upstream, settings)
            except Exception:
                if mode == ExecutionMode.FAIL_FAST:
                    raise
                logger.exception("Step %s failed.", name)
                failed.append(name)
        if failed:
            raise RuntimeError(f"Pipeline run has failed due to failure in step(s): {', '.join(failed)}")

    def _run_as_task(
        self,
        snapshot: "PipelineSnapshotResponse",
        name: str,
        step: "Step",
        upstream: Sequence[State[Any]],
        settings: PrefectOrchestratorSettings,
    ) -> State[Any]:
        """Run one step as a task run and return its final state; raises what the step raised."""
        raised: list[BaseException] = []

        def run_step() -> State[Any] | None:
            try:
                step_run = launch_step(
                    snapshot=snapshot,
                    step=step,
                    orchestrator_run_id=self.get_orchestrator_run_id(),
                    retry=not self.config.handles_step_retries,
                )
            except BaseException as error:
                raised[:] = [error]
                raise
            if step_run.status == ExecutionStatus.CACHED:
                return Completed(name="Cached", message="ZenML took the outputs of an earlier run")
            return None

        task = _task(run_step, f"{snapshot.pipeline_configuration.name}.{name}", name, step, settings)
        state: State[Any] = task(return_state=True, wait_for=upstream)
        if not state.is_completed():
            raise raised[0] if raised else RuntimeError(f"step {name}: {state.message}")
        return state


def _task(
    function: Callable[[], State[Any] | None],
    key: str,
    name: str,
    step: "Step",
    settings: PrefectOrchestratorSettings,
) -> "Task[[], State[Any] | None]":
    retry = step.config.retry
    retries = retry.max_retries if retry else 0
    task = Task(
        function,
        name=name,
        task_run_name=name.replace("{", "{{").replace("}", "}}"),
        retries=retries,
        retry_delay_seconds=[retry.delay * retry.backoff**i for i in range(retries)] if retry and retry.delay else 0,
        retry_condition_fn=_may_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=settings.log_prints,
    )
    # Prefect derives the key from the function's code, which is the same for all steps.
    task.task_key = key
    return task


def _may_retry(task: "Task[..., Any]", task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether a failed step is tried again: not when somebody stopped it."""
    return not isinstance(state.data, (RunStoppedException, RunInterruptedException))


@contextmanager
def _claimed(snapshot: "PipelineSnapshotResponse", run: "PipelineRunResponse | None") -> Iterator[None]:
    """Give the ZenML run its orchestrator run id, for as long as it is executed here."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    run_id = str(context.flow_run.id)
    if run and _id_taken(snapshot, run_id):
        run_id = f"{run_id}.{run.id}"
    url = f"{PREFECT_UI_URL.value()}/runs/flow-run/{context.flow_run.id}"
    token = _active.set(_Active(run_id, url))
    try:
        if run:
            Client().zen_store.update_run(run.id, PipelineRunUpdate(orchestrator_run_id=run_id))
        yield
    finally:
        _active.reset(token)


def _id_taken(snapshot: "PipelineSnapshotResponse", run_id: str) -> bool:
    """Whether the same snapshot already ran in this flow run: ZenML wants (snapshot, run id) to be unique."""
    runs = Client().list_pipeline_runs(snapshot_id=snapshot.id, orchestrator_run_id=run_id, size=1, hydrate=False)
    return runs.total > 0


def _in_flow_run(work: Callable[[], None], name: str, run_name: str, tags: Sequence[str]) -> None:
    """Call `work` inside the current flow run, or inside one of its own when there is none."""
    context = FlowRunContext.get()
    with prefect_tags(*tags), _prefect_api():
        if context and context.flow_run:
            with get_client(sync_client=True) as client:
                known = client.read_flow_run(context.flow_run.id).tags
                client.update_flow_run(context.flow_run.id, tags=sorted({*known, *tags}))
            work()
            return
        flow = Flow(
            work,
            name=_allowed(name),
            flow_run_name=lambda: run_name,
            version="zenml",
            retries=0,
            validate_parameters=False,
            persist_result=False,
            log_prints=False,
        )
        flow()


def _allowed(name: str) -> str:
    """The name without the characters that Prefect refuses."""
    return "".join("-" if character in "/%&<>" else character for character in name)


@contextmanager
def _prefect_api() -> Iterator[None]:
    """Settings for talking to Prefect from here: an API that answers, and no heartbeats, which cost a flat second."""
    url = PREFECT_API_URL.value()
    changes: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    if url is None:
        home = PREFECT_HOME.value()
        url = ensure_server(home)
        changes[PREFECT_API_URL] = url
        changes[PREFECT_UI_URL] = public_url(home, url)
    with temporary_settings(updates=changes):
        yield


def _status(state: State[Any] | None) -> ExecutionStatus:
    if state is None or state.is_pending() or state.is_scheduled():
        return ExecutionStatus.INITIALIZING
    if state.name == "Cached":
        return ExecutionStatus.CACHED
    return STATUS.get(state.type, ExecutionStatus.RUNNING)


def _run_status(flow_run: FlowRun, task_runs: Sequence[TaskRun], run: "PipelineRunResponse") -> ExecutionStatus | None:
    """Status of a ZenML run that may share its flow run with others."""
    if run.status.is_finished or flow_run.state is None or not flow_run.state.is_final():
        return None
    if flow_run.state.is_completed() and any(not r.state or not r.state.is_completed() for r in task_runs):
        return ExecutionStatus.FAILED
    return _status(flow_run.state)
