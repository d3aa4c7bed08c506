"""The orchestrator: a ZenML run as a Prefect flow run, its steps as task runs, here or in processes of their own."""

import atexit
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from zenml.client import Client
from zenml.config.base_settings import BaseSettings
from zenml.config.global_config import GlobalConfiguration
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID, METADATA_ORCHESTRATOR_URL
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.execution.context import setup_execution_context
from zenml.logger import get_logger, logging_context
from zenml.metadata.metadata_types import MetadataType, Uri
from zenml.models import PipelineRunUpdate
from zenml.orchestrators import BaseOrchestrator, SubmissionResult, publish_utils
from zenml.orchestrators.step_launcher import StepLauncher
from zenml.stack import StackValidator
from zenml.utils.env_utils import temporary_environment

from stacks.orchestrator.attempt import STOPS, attempt, signals_ready, step_begins
from stacks.orchestrator.flavor import PrefectOrchestratorConfig, PrefectOrchestratorSettings
from stacks.orchestrator.flow_run import (
    StepStates,
    TaskPolicy,
    current_flow_run_id,
    flow_run_url,
    in_flow_run,
    mark_crashed,
    prefect_address,
    prefect_api,
    prefect_client,
    read_states,
)
from stacks.orchestrator.interrupt import remembered_interrupt
from stacks.orchestrator.outcome import end_run, fail_run, heartbeat_seconds, silent_since, status_of
from stacks.orchestrator.running import bury, marked
from stacks.orchestrator.schedules import delete_schedule, submit_schedule, update_schedule
from stacks.orchestrator.server import without_credentials
from stacks.orchestrator.stop import Watch, current_watch, stop, watched, whereabouts
from stacks.orchestrator.submit import cancel, read_flow_run, submit_run

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import (
        PipelineRunResponse,
        PipelineSnapshotResponse,
        ScheduleResponse,
        ScheduleUpdate,
        StepRunResponse,
    )
    from zenml.stack import Stack

logger = get_logger(__name__)


@dataclass(frozen=True)
class Active:
    """The run that the current context executes."""

    orchestrator_run_id: str
    flow_run_url: str
    zenml_run_id: str | None


_active: ContextVar[Active | None] = ContextVar("prefect_orchestrator_run", default=None)


@atexit.register
def _end_quietly() -> None:
    """ZenML's log store leaves a handler that flushes in a new thread, which Python refuses at exit since 3.12."""
    logging.raiseExceptions = False


class PrefectOrchestrator(BaseOrchestrator):
    """Runs ZenML pipelines as Prefect flows from the calling process.

    Steps run in it one at a time, or, as the runner says, each in a process of its own as soon as those before it are
    done (`parallel`), on this machine or on Dask workers.

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
        """Whether init and cleanup hooks run around each step: only in a process that is the step's own.

        Asked outside of a run, whether the steps of a static pipeline have such.
        """
        if step_begins.get() is not None:
            return True
        return _active.get() is None and self.config.where != "inline"

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        """All of ZenML's execution modes."""
        return [ExecutionMode.FAIL_FAST, ExecutionMode.STOP_ON_FAILURE, ExecutionMode.CONTINUE_ON_FAILURE]

    @property
    def validator(self) -> StackValidator:
        """What looks whether the stack's other components can be read where runs and steps are."""
        from stacks.orchestrator.validation import fits

        return StackValidator(custom_validation_function=lambda stack: fits(self.config, stack))

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
            **whereabouts(),
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
        settings = cast(PrefectOrchestratorSettings, self.get_settings(snapshot))
        if (elsewhere := self._handed_over(snapshot, placeholder_run, settings)) is not None:
            return elsewhere
        if self.config.where == "process":
            from stacks.orchestrator.pool import warm_up

            warm_up()

        def work() -> None:
            if self.config.where != "inline":
                self._run_in_processes(snapshot, step_environments, settings)
                return
            try:
                self.run_init_hook(snapshot=snapshot)
            except BaseException:
                self._publish_link(placeholder_run)
                raise
            try:
                with setup_execution_context(), remembered_interrupt() as interrupted:
                    self._run_steps(snapshot, step_environments, settings, interrupted)
            finally:
                self.run_cleanup_hook(snapshot=snapshot)

        return self._execute(snapshot, placeholder_run, settings, work)

    def submit_dynamic_pipeline(
        self,
        snapshot: "PipelineSnapshotResponse",
        stack: "Stack",  # noqa: ARG002
        environment: dict[str, str],
        placeholder_run: "PipelineRunResponse | None" = None,
    ) -> SubmissionResult:
        """Run a dynamic pipeline to its end; ZenML's own runner decides what runs when, in threads where it likes.

        Returns:
            A result with nothing to wait for.

        Raises:
            BaseException: What made the run fail.
        """
        from stacks.orchestrator.dynamic import run_dynamic

        settings = cast(PrefectOrchestratorSettings, self.get_settings(snapshot))
        if (elsewhere := self._handed_over(snapshot, placeholder_run, settings)) is not None:
            return elsewhere

        def work() -> None:
            self._publish_link(placeholder_run)
            active, watch = _active.get(), current_watch.get()
            assert active is not None and watch is not None
            with temporary_environment(environment), remembered_interrupt() as interrupted:
                watch.interrupts(interrupted)
                run_dynamic(self, snapshot, placeholder_run, active, task_policy(settings))

        return self._execute(snapshot, placeholder_run, settings, work)

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
        every = heartbeat_seconds()
        with prefect_api():
            _bury_dead_runs()
            _mark_if_silent(_flow_run_id(run.orchestrator_run_id), every)
            try:
                state, tasks = read_states(_flow_run_id(run.orchestrator_run_id))
            except LookupError as error:
                raise RuntimeError(f"{error}, which run '{run.name}' names") from None
        own = [task for task in tasks if str(run.id) in task.tags]
        steps = {task.name: status_of(task.state) for task in own} if include_steps else None
        if state is not None and state.is_final():
            end_run(run.id, state)
        return _run_status(run, state, own), steps

    def submit_isolated_step(self, step_run_info: "StepRunInfo", environment: dict[str, str]) -> None:
        """Start a step of a dynamic pipeline in a process of its own, as a task run of its own.

        Raises:
            RuntimeError: No dynamic pipeline is being executed here.
        """
        from stacks.orchestrator.isolated import isolated_steps

        if (steps := isolated_steps.get()) is None:
            raise RuntimeError(
                f"step '{step_run_info.pipeline_step_name}' cannot be started: no dynamic pipeline is running here"
            )
        steps.start(step_run_info, environment)

    def get_isolated_step_status(self, step_run: "StepRunResponse") -> ExecutionStatus:
        """How an isolated step's process is doing; for others than the run's own process, what ZenML has."""
        from stacks.orchestrator.isolated import isolated_status

        return isolated_status(step_run)

    def wait_for_isolated_step(self, step_run: "StepRunResponse") -> ExecutionStatus:
        """Wait for the end of an isolated step; whatever interrupts the waiting ends the step."""
        from stacks.orchestrator.isolated import isolated_steps

        steps = isolated_steps.get()
        if steps is None or steps.status(step_run.id) is None:
            return super().wait_for_isolated_step(step_run)
        return steps.wait(step_run.id)

    def stop_isolated_step(self, step_run: "StepRunResponse") -> None:
        """End an isolated step's process, by asking, then by force."""
        from stacks.orchestrator.isolated import isolated_steps

        if (steps := isolated_steps.get()) is not None:
            steps.stop(step_run.id)

    def prepare_step_run(self, info: "StepRunInfo") -> None:
        """Tell whoever waits for it that the step's function is about to run in this process."""
        if (put_in_front := signals_ready.get()) is not None:
            put_in_front()
        if (tell := step_begins.get()) is not None:
            tell(info.step_run_id)

    def update_schedule(self, schedule: "ScheduleResponse", update: "ScheduleUpdate") -> None:
        """Change a schedule's cron expression, or whether it is active, in Prefect."""

        def timezone_of(snapshot_id: UUID) -> str:
            settings = self.get_settings(Client().get_snapshot(snapshot_id))
            return cast(PrefectOrchestratorSettings, settings).timezone

        update_schedule(schedule, update, timezone_of)

    def delete_schedule(self, schedule: "ScheduleResponse") -> None:
        """Delete a schedule, and the runs that it has planned, in Prefect."""
        delete_schedule(schedule)

    def _stop_run(self, run: "PipelineRunResponse", graceful: bool = False) -> None:
        """Stop a run: one that was handed over is cancelled in Prefect, whose worker ends it and its steps."""
        flow_run_id = _flow_run_id(run.orchestrator_run_id)
        with prefect_api():
            submitted = read_flow_run(flow_run_id).deployment_id is not None
        if not submitted:
            super()._stop_run(run, graceful)
        elif (state := cancel(flow_run_id)) is not None and state.is_final():
            end_run(run.id, state)

    def _stop_run_gracefully(self, pipeline_run: "PipelineRunResponse") -> None:
        """Let the process that executes the run start no further step."""
        with prefect_api():
            stop(pipeline_run, _flow_run_id(pipeline_run.orchestrator_run_id), graceful=True, folder=_running_folder())

    def _stop_run_forcefully(self, pipeline_run: "PipelineRunResponse") -> None:
        """Interrupt the process that executes the run; ZenML's signal handler then ends the step."""
        with prefect_api():
            stop(pipeline_run, _flow_run_id(pipeline_run.orchestrator_run_id), graceful=False, folder=_running_folder())

    def _handed_over(
        self,
        snapshot: "PipelineSnapshotResponse",
        run: "PipelineRunResponse | None",
        settings: PrefectOrchestratorSettings,
    ) -> SubmissionResult | None:
        """Hand a run or a schedule to the work pool; None for a run that is to be executed here.

        Inside a flow run it is executed there: a worker started that one, or somebody who waits for it.
        """
        if snapshot.schedule and run is None:
            return submit_schedule(self.config, settings, snapshot)
        if self.config.work_pool is None or run is None or current_flow_run_id() is not None:
            return None
        return submit_run(self.config, settings, snapshot, run)

    def _execute(
        self,
        snapshot: "PipelineSnapshotResponse",
        run: "PipelineRunResponse | None",
        settings: PrefectOrchestratorSettings,
        work: Callable[[], None],
    ) -> SubmissionResult:
        shared = current_flow_run_id() is not None

        run_id = run.id if run else None
        watches: list[Watch] = []

        def claimed_work() -> None:
            flow_run_id = current_flow_run_id()
            assert flow_run_id is not None
            with _claimed(snapshot, run, shared), watched(flow_run_id, run_id) as watch:
                watches.append(watch)
                work()

        def stopped(error: BaseException) -> bool:
            return isinstance(error, STOPS) or any(watch.asked() for watch in watches)

        name = snapshot.pipeline_configuration.name
        label = str(run_id) if run_id else None
        with prefect_api():
            _bury_dead_runs()
            in_flow_run(claimed_work, name, run.name if run else name, settings.tags, label, stopped)
        return SubmissionResult()

    def _publish_link(self, run: "PipelineRunResponse | None") -> None:
        """Write the run's link where ZenML does not ask for it: no step starts, or the pipeline is dynamic."""
        if run:
            publish_utils.publish_pipeline_run_metadata(run.id, {self.id: self.get_pipeline_run_metadata(run.id)})

    def _run_steps(
        self,
        snapshot: "PipelineSnapshotResponse",
        environments: Mapping[str, dict[str, str]],
        settings: PrefectOrchestratorSettings,
        interrupted: Callable[[], bool],
    ) -> None:
        mode = snapshot.pipeline_configuration.execution_mode
        states = StepStates()
        failed: dict[str, Exception] = {}
        skipped: set[str] = set()
        watch = current_watch.get()
        assert watch is not None
        watch.interrupts(interrupted)
        for name, step in snapshot.step_configurations.items():
            if interrupted():
                raise KeyboardInterrupt
            watch.raise_if_graceful()
            blocked = [other for other in step.spec.upstream_steps if other in skipped or other in failed]
            if blocked or (failed and mode == ExecutionMode.STOP_ON_FAILURE):
                logger.warning("Skipping step %s after failed or skipped %s.", name, ", ".join(blocked or failed))
                skipped.add(name)
                continue
            try:
                with temporary_environment(environments[name]):
                    self._run_step_as_task(snapshot, name, step, states, settings)
            except STOPS:
                raise
            except Exception as error:
                if mode == ExecutionMode.FAIL_FAST:
                    raise
                failed[name] = error
        if interrupted():
            raise KeyboardInterrupt
        _raise_first(failed)

    def _run_in_processes(
        self,
        snapshot: "PipelineSnapshotResponse",
        environments: Mapping[str, dict[str, str]],
        settings: PrefectOrchestratorSettings,
    ) -> None:
        from stacks.orchestrator.parallel import ParallelRun, most_at_once, place_for

        active, watch = _active.get(), current_watch.get()
        assert active is not None and watch is not None
        with setup_execution_context(), remembered_interrupt() as interrupted:
            watch.interrupts(interrupted)
            first = next(iter(snapshot.step_configurations.values()))
            # As its first step would; done here, eight first steps need not agree on who does it.
            run, begun = StepLauncher(snapshot, first, active.orchestrator_run_id)._create_or_reuse_run()
            if begun:
                self._publish_link(run)
            with place_for(self.config, snapshot, snapshot.step_configurations, environments) as place:
                steps = ParallelRun(snapshot, run, active, place, task_policy(settings))
                limit = most_at_once(self.config, len(snapshot.step_configurations))
                failed = steps.execute(limit, interrupted, lambda: watch.graceful)
            if interrupted():
                raise KeyboardInterrupt
            watch.raise_if_graceful()
        _raise_first(failed)

    def _run_step_as_task(
        self,
        snapshot: "PipelineSnapshotResponse",
        name: str,
        step: "Step",
        states: StepStates,
        settings: PrefectOrchestratorSettings,
    ) -> None:
        def launch() -> State[Any] | None:
            return final_state(attempt(snapshot, name, self.get_orchestrator_run_id()).status)

        states.run(
            name, task_key(snapshot, name), step.spec.upstream_steps, launch, task_policy(settings, delays(step))
        )


def task_policy(settings: PrefectOrchestratorSettings, retries: Sequence[float] = ()) -> TaskPolicy:
    """How the steps of the current run are run as tasks; `retries` are the delays before each."""
    active = _active.get()
    return TaskPolicy(retries, settings.log_prints, active.zenml_run_id if active else None, STOPS)


def task_key(snapshot: "PipelineSnapshotResponse", step_name: str) -> str:
    """What Prefect recognises a step by, over runs."""
    return f"{snapshot.pipeline_configuration.name}.{step_name}"


def final_state(status: ExecutionStatus) -> State[Any] | None:
    """The state that a finished step gives its task run; None for Prefect's own."""
    if status == ExecutionStatus.CACHED:
        return Completed(name="Cached", message="ZenML took the outputs of an earlier run")
    return None


def delays(step: "Step") -> list[float]:
    """Seconds to wait before each retry of a step."""
    retry = step.config.retry
    return [retry.delay * retry.backoff**attempt for attempt in range(retry.max_retries)] if retry else []


def _raise_first(failed: Mapping[str, Exception]) -> None:
    """Fail the run in a mode that went on after failures."""
    if failed:
        first = next(iter(failed.values()))
        reason = f"{type(first).__name__}: {str(first)[:500]}"
        raise RuntimeError(f"Pipeline run has failed in step(s) {', '.join(failed)}: {reason}") from first


@contextmanager
def _claimed(snapshot: "PipelineSnapshotResponse", run: "PipelineRunResponse | None", shared: bool) -> Iterator[None]:
    """Give the ZenML run its orchestrator run id, for as long as it is executed here."""
    flow_run_id = current_flow_run_id()
    assert flow_run_id is not None
    run_id = str(flow_run_id)
    if run and shared and run.orchestrator_run_id != run_id and _id_taken(snapshot, run_id):
        run_id = f"{run_id}.{run.id}"
    with executing(Active(run_id, flow_run_url(flow_run_id), str(run.id) if run else None)):
        if run is None:
            yield
            return
        Client().zen_store.update_run(run.id, PipelineRunUpdate(orchestrator_run_id=run_id))
        facts = {"zenml_run_id": str(run.id), "flow_run_id": str(flow_run_id), **_records()}
        with marked(_running_folder(), str(run.id), facts, lambda: _finished(run.id)):
            yield


def _finished(run_id: UUID) -> bool:
    return bool(Client().get_pipeline_run(run_id, hydrate=False).status.is_finished)


@contextmanager
def executing(active: Active) -> Iterator[None]:
    """Execute a run, or a step of it, in this context while the block lasts."""
    token = _active.set(active)
    flow_run_id = active.orchestrator_run_id.partition(".")[0]
    try:
        # What is logged from here on names the run, in this process and in the logs that ZenML stores.
        with logging_context(zenml_run_id=active.zenml_run_id, prefect_flow_run_id=flow_run_id):
            yield
    finally:
        _active.reset(token)


def _id_taken(snapshot: "PipelineSnapshotResponse", run_id: str) -> bool:
    """Whether the same snapshot already ran in this flow run: ZenML wants (snapshot, run id) to be unique."""
    runs = Client().list_pipeline_runs(snapshot_id=snapshot.id, orchestrator_run_id=run_id, size=1, hydrate=False)
    return bool(runs.total > 0)


def _flow_run_id(orchestrator_run_id: str) -> UUID:
    return UUID(orchestrator_run_id.partition(".")[0])


def _running_folder() -> Path:
    return Path(GlobalConfiguration().config_directory) / "prefect_orchestrator"


def _records() -> dict[str, str]:
    """Where a run that is executed here has its records."""
    store = GlobalConfiguration().store_configuration.url
    return {"prefect": prefect_address(), "zenml": without_credentials(store)}


def _bury_dead_runs() -> None:
    """Set the records right of runs whose process was killed: neither ZenML nor Prefect would ever notice."""
    bury(_running_folder(), _settled)


def _settled(facts: Mapping[str, Any]) -> bool:
    """Give a killed process's run its end in both records, if these are this process's; whether they have it."""
    if any(facts.get(name, where) != where for name, where in _records().items()):
        return False
    reason = "The process that executed the run ended without a word."
    marks: dict[str, Callable[[], None]] = {
        f"Prefect of flow run {facts['flow_run_id']}": lambda: mark_crashed(UUID(facts["flow_run_id"]), reason),
        f"ZenML of run {facts['zenml_run_id']}": lambda: fail_run(UUID(facts["zenml_run_id"]), reason),
    }
    settled = True
    for record, mark in marks.items():
        try:
            mark()
        except LookupError:
            logger.debug("Nobody can tell %s, which ended with its process: it was deleted there.", record)
        except Exception as error:
            logger.warning("%s, which ended with its process, was not told: %s", record, error)
            settled = False
    return settled


def _mark_if_silent(flow_run_id: UUID, every: float) -> None:
    """Set Prefect's record right of a flow run whose worker was lost with it: its heartbeats are missing."""
    with prefect_client() as client:
        if (last := silent_since(client, read_flow_run(flow_run_id), every)) is not None:
            mark_crashed(flow_run_id, f"Its process gave no sign since {last:%Y-%m-%d %H:%M:%S} UTC.")


def _run_status(run: "PipelineRunResponse", state: State[Any] | None, own: list[TaskRun]) -> ExecutionStatus | None:
    """Status of a ZenML run, which may share its flow run with others."""
    if run.status.is_finished or state is None or not state.is_final() or state.is_cancelled():
        # ZenML knows better, or `end_run` has told it: of a run without steps it would take no "stopped".
        return None
    if state.is_completed() and any(not task.state or not task.state.is_completed() for task in own):
        return ExecutionStatus.FAILED
    return status_of(state)
