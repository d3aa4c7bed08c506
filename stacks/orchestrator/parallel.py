"""Steps in processes of their own: a task run here, in a thread that waits for the process and keeps its log."""

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from zenml.enums import ExecutionStatus
from zenml.exceptions import RunStoppedException
from zenml.models import ExceptionInfo
from zenml.orchestrators import publish_utils
from zenml.orchestrators.step_run_utils import StepRunRequestFactory, publish_cached_step_run
from zenml.stack import Stack
from zenml.utils import source_utils
from zenml.utils.logging_utils import LoggingContext

from stacks.orchestrator.attempt import end_retries
from stacks.orchestrator.demand import demand
from stacks.orchestrator.flavor import PrefectOrchestratorConfig
from stacks.orchestrator.flow_run import StepStates, TaskPolicy
from stacks.orchestrator.orchestrator import Active, delays, final_state, task_key
from stacks.orchestrator.place import Place, StepProcess
from stacks.orchestrator.pool import PoolPlace, Wanted
from stacks.orchestrator.schedule import Schedule
from stacks.orchestrator.step_log import StepLog
from stacks.orchestrator.step_process import ProcessDied, follow, levels

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

logger = logging.getLogger(__name__)


def place_for(
    config: PrefectOrchestratorConfig,
    snapshot: "PipelineSnapshotResponse",
    steps: Mapping[str, "Step"],
    environments: Mapping[str, dict[str, str]],
) -> Place:
    """Where steps get their processes from: this machine's pool, or Dask's workers.

    Args:
        config: The component's configuration.
        snapshot: The pipeline's snapshot.
        steps: Those that are going to run, by name.
        environments: For each step, variables on top of this process's; Dask's workers ask ZenML for them instead.
    """
    assert snapshot.stack is not None
    wanted = Wanted(
        sorted({type(component).__module__ for component in Stack.from_model(snapshot.stack).all_components}),
        sorted({step.spec.source.import_path for step in steps.values()}),
        source_utils.get_source_root(),
    )
    if config.where != "dask":
        return PoolPlace(wanted, environments)
    from stacks.orchestrator.dask_place import DaskPlace

    demands = {name: demand(step.config.resource_settings) for name, step in steps.items()}
    return DaskPlace(wanted, demands, config.dask_scheduler, config.max_parallel)


def most_at_once(config: PrefectOrchestratorConfig, steps: int) -> int:
    """How many steps of a run may be with their place at once: all, where a Dask scheduler decides and none is said.

    The workers of a cluster of this machine execute one step each; a second one waits there, so that none idles while
    the next step is recorded and sent.
    """
    if config.where == "dask" and not config.dask_scheduler:
        return 2 * config.max_parallel
    if config.dask_scheduler and "max_parallel" not in config.model_fields_set:
        return max(steps, 1)
    return config.max_parallel


class ParallelRun:
    """One run of a static pipeline whose steps run in processes, as many at once as the component allows."""

    def __init__(
        self,
        snapshot: "PipelineSnapshotResponse",
        run: "PipelineRunResponse",
        active: Active,
        place: Place,
        policy: TaskPolicy,
    ) -> None:
        """Plan the run.

        Args:
            snapshot: The pipeline's snapshot.
            run: ZenML's run, which has begun.
            active: The same run as this orchestrator knows it.
            place: Where processes for steps come from.
            policy: How steps are run as tasks, but for their retries.
        """
        self._snapshot = snapshot
        self._run = run
        self._active = active
        self._place = place
        # All that a step prints goes to Prefect's log anyway.
        self._policy = replace(policy, log_prints=False)
        assert snapshot.stack is not None
        self._requests = StepRunRequestFactory(snapshot, run, Stack.from_model(snapshot.stack))
        self._states = StepStates()
        self._processes: dict[str, StepProcess] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def execute(self, limit: int, interrupted: Callable[[], bool], ending: Callable[[], bool]) -> dict[str, Exception]:
        """Run all steps, at most `limit` at once, until somebody interrupts or wants no further one to start.

        Returns:
            What failed steps raised, by name, when the pipeline's mode goes on after failures.

        Raises:
            BaseException: What a step raised in fail-fast mode, a stop, or an interrupt.
        """
        steps = self._snapshot.step_configurations
        mode = self._snapshot.pipeline_configuration.execution_mode
        graph = {name: step.spec.upstream_steps for name, step in steps.items()}
        schedule = Schedule(graph, self._run_as_task, self._stop, limit, mode)
        schedule.run(interrupted, ending)
        return schedule.failed

    def _run_as_task(self, name: str) -> None:
        # What the step says is in its own log, not in that of the run.
        LoggingContext.__context_var__.set(None)
        step = self._snapshot.step_configurations[name]
        policy = replace(self._policy, delays=delays(step), stopping=self._stopping)
        key = task_key(self._snapshot, name)
        self._states.run(name, key, step.spec.upstream_steps, lambda: self._attempt(name), policy)

    def _stop(self, number: signal.Signals) -> None:
        with self._lock:
            self._stopping.set()
            processes = list(self._processes.values())
        for process in processes:
            process.signal(number)

    def _attempt(self, name: str) -> State[Any] | None:
        if self._cached(name):
            return final_state(ExecutionStatus.CACHED)
        log = StepLog(self._snapshot.step_configurations[name].config, self._snapshot, self._run)
        try:
            return final_state(ExecutionStatus(self._in_process(name, log)))
        finally:
            log.end()

    def _cached(self, name: str) -> bool:
        """Record a step whose outputs are there already; that needs no process."""
        try:
            request = self._requests.create_request(name)
            self._requests.populate_request(request)
        except Exception as error:
            # It will fail again in its process, where failures are recorded.
            logger.debug("Whether step %s is cached could not be told: %s", name, error)
            return False
        if request.status != ExecutionStatus.CACHED:
            return False
        self._requests.record_step_run(publish_cached_step_run(request, pipeline_run=self._run))
        logger.info("Using cached version of step `%s`.", name)
        return True

    def _in_process(self, name: str, log: StepLog) -> str:
        process = self._started(name)
        try:
            return follow(process, name, log)
        except ProcessDied as death:
            raise self._died(name, death) from None
        finally:
            with self._lock:
                del self._processes[name]

    def _started(self, name: str) -> StepProcess:
        if self._stopping.is_set():
            end_retries(self._snapshot, name)
            raise RunStoppedException(f"step '{name}' was not started: the run is being stopped")
        process = self._place.start(self._job(name))
        with self._lock:
            self._processes[name] = process
            stopping = self._stopping.is_set()
        if stopping:
            process.signal(signal.SIGTERM)
        return process

    def _job(self, name: str) -> dict[str, Any]:
        return {
            "snapshot": str(self._snapshot.id),
            "step": name,
            "orchestrator_run_id": self._active.orchestrator_run_id,
            "flow_run_url": self._active.flow_run_url,
            "zenml_run_id": self._active.zenml_run_id,
            "levels": levels(),
        }

    def _died(self, name: str, death: ProcessDied) -> Exception:
        """Record the end of a process that could not tell of it itself; returns what to raise."""
        stopped = self._stopping.is_set()
        if death.step_run_id is not None:
            publish_utils.publish_step_run_status_update(
                death.step_run_id,
                ExecutionStatus.STOPPED if stopped else ExecutionStatus.FAILED,
                exception_info=ExceptionInfo(traceback=str(death), message=str(death)),
            )
        if stopped:
            end_retries(self._snapshot, name)
            return RunStoppedException(str(death))
        return death
