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
from stacks.orchestrator.flow_run import StepStates, TaskPolicy
from stacks.orchestrator.orchestrator import Active, delays, final_state, task_key
from stacks.orchestrator.pool import Job, Pool, Wanted, pool_for
from stacks.orchestrator.schedule import Schedule
from stacks.orchestrator.step_log import StepLog
from stacks.orchestrator.step_process import ProcessDied, follow, surroundings

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

logger = logging.getLogger(__name__)


class ParallelRun:
    """One run of a static pipeline whose steps run in processes, as many at once as the component allows."""

    def __init__(
        self,
        snapshot: "PipelineSnapshotResponse",
        run: "PipelineRunResponse",
        active: Active,
        environments: Mapping[str, dict[str, str]],
        policy: TaskPolicy,
    ) -> None:
        """Plan the run.

        Args:
            snapshot: The pipeline's snapshot.
            run: ZenML's run, which has begun.
            active: The same run as this orchestrator knows it.
            environments: For each step, variables on top of this process's.
            policy: How steps are run as tasks, but for their retries.
        """
        self._snapshot = snapshot
        self._run = run
        self._active = active
        self._environments = environments
        # All that a step prints goes to Prefect's log anyway.
        self._policy = replace(policy, log_prints=False)
        assert snapshot.stack is not None
        stack = Stack.from_model(snapshot.stack)
        self._requests = StepRunRequestFactory(snapshot, run, stack)
        self._wanted = Wanted(
            sorted({type(component).__module__ for component in stack.all_components}),
            sorted({step.spec.source.import_path for step in snapshot.step_configurations.values()}),
            source_utils.get_source_root(),
        )
        self._states = StepStates()
        self._jobs: dict[str, Job] = {}
        self._pool: Pool | None = None
        self._pool_lock = threading.Lock()
        self._stopping = False
        self._lock = threading.Lock()

    def execute(self, limit: int, interrupted: Callable[[], bool]) -> dict[str, Exception]:
        """Run all steps, at most `limit` at once.

        Returns:
            What failed steps raised, by name, when the pipeline's mode goes on after failures.

        Raises:
            BaseException: What a step raised in fail-fast mode, a stop, or an interrupt.
        """
        steps = self._snapshot.step_configurations
        mode = self._snapshot.pipeline_configuration.execution_mode
        graph = {name: step.spec.upstream_steps for name, step in steps.items()}
        schedule = Schedule(graph, self._run_as_task, self._stop, limit, mode)
        schedule.run(interrupted)
        return schedule.failed

    def _run_as_task(self, name: str) -> None:
        # What the step says is in its own log, not in that of the run.
        LoggingContext.__context_var__.set(None)
        step = self._snapshot.step_configurations[name]
        policy = replace(self._policy, delays=delays(step))
        key = task_key(self._snapshot, name)
        self._states.run(name, key, step.spec.upstream_steps, lambda: self._attempt(name), policy)

    def _stop(self, number: signal.Signals) -> None:
        with self._lock:
            self._stopping = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.signal(number)

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

    def _warm_pool(self) -> Pool:
        """The pool of this run: looked at for changed files once, started anew should it have ended meanwhile."""
        with self._pool_lock:
            if self._pool is None or not self._pool.alive():
                self._pool = pool_for(self._wanted)
            return self._pool

    def _in_process(self, name: str, log: StepLog) -> str:
        pool = self._warm_pool()
        with self._lock:
            if self._stopping:
                raise RunStoppedException(f"step '{name}' was not started: the run is being stopped")
            job = self._jobs[name] = pool.run(self._job(name))
        try:
            return follow(job, name, log)
        except ProcessDied as death:
            raise self._died(name, death) from None
        finally:
            del self._jobs[name]

    def _job(self, name: str) -> dict[str, Any]:
        return {
            "snapshot": str(self._snapshot.id),
            "step": name,
            "orchestrator_run_id": self._active.orchestrator_run_id,
            "flow_run_url": self._active.flow_run_url,
            "zenml_run_id": self._active.zenml_run_id,
            **surroundings(self._environments[name]),
        }

    def _died(self, name: str, death: ProcessDied) -> Exception:
        """Record the end of a process that could not tell of it itself; returns what to raise."""
        stopped = self._stopping
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
