"""Isolated steps of a dynamic pipeline: each a task run of its own, in a process of its own."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.objects import State
from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.enums import ExecutionStatus
from zenml.exceptions import RunStoppedException
from zenml.models import ExceptionInfo
from zenml.orchestrators import publish_utils
from zenml.utils.logging_utils import LoggingContext

from stacks.orchestrator.attempt import STOPS
from stacks.orchestrator.failure import described
from stacks.orchestrator.flavor import PrefectOrchestratorConfig
from stacks.orchestrator.flow_run import StepStates, TaskPolicy
from stacks.orchestrator.orchestrator import Active, final_state, task_key
from stacks.orchestrator.parallel import most_at_once, place_for
from stacks.orchestrator.place import Place, StepProcess
from stacks.orchestrator.schedule import GRACE_SECONDS, LOOK_SECONDS
from stacks.orchestrator.step_log import StepLog
from stacks.orchestrator.step_process import follow, levels

if TYPE_CHECKING:
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import StepRunResponse

logger = logging.getLogger(__name__)

MANY = 1000


class _Step:
    """One attempt at an isolated step, from its submission to its end."""

    def __init__(self) -> None:
        self.status = ExecutionStatus.RUNNING
        self.ended = threading.Event()
        self.stopping = False
        self.process: StepProcess | None = None


class IsolatedSteps:
    """The isolated steps of the dynamic run that is executed here, and of the runs nested in it."""

    def __init__(self, config: PrefectOrchestratorConfig, active: Active, policy: TaskPolicy) -> None:
        """Have none yet.

        Args:
            config: The component's, which says how many may run at once, and where.
            active: The run.
            policy: How steps are run as tasks; ZenML's runner retries them.
        """
        self._config = config
        self._active = active
        # All that a step prints goes to Prefect's log anyway.
        self._policy = replace(policy, log_prints=False)
        self._slots = threading.Semaphore(most_at_once(config, MANY))
        self._states = StepStates()
        self._steps: dict[UUID, _Step] = {}
        self._lock = threading.Lock()
        self.told: list[Callable[[], None]] = []
        """Called whenever a step has ended."""

    def start(self, info: "StepRunInfo", environment: dict[str, str]) -> None:
        """Have a step run, as soon as there is room, and come back at once."""
        step = self._steps[info.step_run_id] = _Step()
        run = copy_context().run
        name = f"isolated {info.pipeline_step_name}"
        threading.Thread(target=run, args=(self._run, info, environment, step), name=name, daemon=True).start()

    def status(self, step_run_id: UUID) -> ExecutionStatus | None:
        """How a step's process is doing; None for one that was not started by this process."""
        step = self._steps.get(step_run_id)
        return step.status if step else None

    def wait(self, step_run_id: UUID) -> ExecutionStatus:
        """Wait for the end of a step that was started here; whatever interrupts the waiting ends the step."""
        step = self._steps[step_run_id]
        try:
            step.ended.wait()
        except BaseException:
            self.stop(step_run_id)
            raise
        return step.status

    def await_end(self, step_run_id: UUID) -> None:
        """Wait for the end of a step, if it was started here."""
        if (step := self._steps.get(step_run_id)) is not None:
            step.ended.wait()

    def stop(self, step_run_id: UUID) -> None:
        """End a step, by asking, then by force, and wait until it has ended."""
        step = self._steps.get(step_run_id)
        if step is None or step.ended.is_set():
            return
        with self._lock:
            step.stopping = True
            process = step.process
        if process is None:
            # It waits for its turn, or its place for an answer, and will not run.
            _publish(step_run_id, ExecutionStatus.STOPPED)
            step.ended.wait(GRACE_SECONDS)
            return
        _publish(step_run_id, ExecutionStatus.STOPPING)
        process.signal(signal.SIGTERM)
        if not step.ended.wait(GRACE_SECONDS):
            process.signal(signal.SIGKILL)
            step.ended.wait()

    def stop_all(self) -> None:
        """End all that run or wait."""
        for step_run_id in list(self._steps):
            self.stop(step_run_id)

    def _run(self, info: "StepRunInfo", environment: dict[str, str], step: _Step) -> None:
        # What the step says is in its own log, not in that of the run.
        LoggingContext.__context_var__.set(None)
        name = info.pipeline_step_name
        key = task_key(info.snapshot, name)
        try:
            with self._slot(name, step):
                self._states.run(
                    name, key, info.spec.upstream_steps, lambda: self._attempt(info, environment, step), self._policy
                )
            step.status = ExecutionStatus.COMPLETED
        except STOPS:
            step.status = ExecutionStatus.STOPPED
            _publish(info.step_run_id, ExecutionStatus.STOPPED)
        except BaseException as error:
            step.status = ExecutionStatus.FAILED
            _publish(info.step_run_id, ExecutionStatus.FAILED, error)
        finally:
            step.ended.set()
            for tell in self.told:
                tell()

    @contextmanager
    def _slot(self, name: str, step: _Step) -> Iterator[None]:
        """Wait for room for one more step; one that is stopped meanwhile waits no longer."""
        while not self._slots.acquire(timeout=LOOK_SECONDS):
            if step.stopping:
                raise RunStoppedException(f"step '{name}' was stopped before it ran")
        try:
            yield
        finally:
            self._slots.release()

    def _attempt(self, info: "StepRunInfo", environment: dict[str, str], step: _Step) -> State[Any] | None:
        name = info.pipeline_step_name
        run = Client().get_pipeline_run(info.run_id)
        log = StepLog(info.config, info.snapshot, run)
        try:
            with self._place(info, environment) as place:
                with self._lock:
                    if step.stopping:
                        raise RunStoppedException(f"step '{name}' was stopped before it ran")
                    step.process = place.start(self._job(info))
                return final_state(ExecutionStatus(follow(step.process, name, log)))
        except Exception as error:
            if step.stopping and not isinstance(error, STOPS):
                raise RunStoppedException(f"step '{name}' was stopped") from error
            raise
        finally:
            log.end()

    def _place(self, info: "StepRunInfo", environment: dict[str, str]) -> Place:
        step = Step(spec=info.spec, config=info.config, step_config_overrides=info.config)
        name = info.pipeline_step_name
        return place_for(self._config, info.snapshot, {name: step}, {name: environment})

    def _job(self, info: "StepRunInfo") -> dict[str, Any]:
        return {
            "snapshot": str(info.snapshot.id),
            "step": info.pipeline_step_name,
            "step_run": str(info.step_run_id),
            "orchestrator_run_id": self._active.orchestrator_run_id,
            "flow_run_url": self._active.flow_run_url,
            "zenml_run_id": str(info.run_id),
            "levels": levels(),
        }


isolated_steps: ContextVar[IsolatedSteps | None] = ContextVar("prefect_orchestrator_isolated_steps", default=None)
"""Those of the dynamic run that the current context executes."""


def isolated_status(step_run: "StepRunResponse") -> ExecutionStatus:
    """How an isolated step stands, for whoever asks.

    A step's process ends with the process that executes the run: one that a later executor of the same run does not
    know cannot be running.
    """
    steps = isolated_steps.get()
    status = steps.status(step_run.id) if steps else None
    if status is not None:
        return status
    recorded = Client().get_run_step(step_run.id, hydrate=False).status
    return recorded if steps is None or recorded.is_finished else ExecutionStatus.FAILED


def _publish(step_run_id: UUID, status: ExecutionStatus, error: BaseException | None = None) -> None:
    """Record a state that the step's process could not record, unless it did."""
    if Client().get_run_step(step_run_id, hydrate=False).status.is_finished:
        return
    text = described(error) if error else None
    info = ExceptionInfo(traceback=text["traceback"], message=text["message"]) if text else None
    try:
        publish_utils.publish_step_run_status_update(step_run_id, status, exception_info=info)
    except Exception as refused:
        # It ended meanwhile, in its own words.
        logger.debug("Step run %s was not marked %s: %s", step_run_id, status, refused)
