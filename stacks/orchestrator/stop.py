"""Stopping a run that a process executes: asked for in ZenML or in Prefect, noticed by that process within seconds.

Prefect's record of the flow run carries the wish, so that it reaches a process on any machine: a state of type
cancelling, as `prefect flow-run cancel` sets it, or one named `Stopping` that lets steps that run come to their end.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.exceptions import RunStoppedException

from stacks.orchestrator.attempt import STOPS
from stacks.orchestrator.flow_run import mark_cancelled, prefect_client
from stacks.orchestrator.outcome import publish_stopping, stop_run
from stacks.orchestrator.running import process_of

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
GRACEFUL = "Stopping"
HOST, PROCESS, STARTED = "orchestrator_host", "orchestrator_process", "orchestrator_process_started"
WANTED = (StateType.CANCELLING, StateType.CANCELLED)
ENDING = (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED)


def whereabouts() -> dict[str, Any]:
    """This process, as the metadata of the runs that it executes."""
    return {HOST: socket.gethostname(), PROCESS: os.getpid(), STARTED: psutil.Process().create_time()}


def _lives(metadata: Mapping[str, Any]) -> bool:
    """Whether the process that executes a run is one of this machine, of another home perhaps, and is there."""
    try:
        found = psutil.Process(int(metadata[PROCESS])).create_time()
        return bool(metadata[HOST] == socket.gethostname() and abs(found - metadata[STARTED]) < 1)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


class Watch:
    """Looks every few seconds whether somebody wants the run to end, and ends it.

    Attributes:
        graceful: Somebody wants no further step to start.
    """

    def __init__(self, flow_run_id: UUID, run_id: UUID | None) -> None:
        self.graceful = False
        self._flow_run_id = flow_run_id
        self._run_id = run_id
        self._interrupted: Callable[[], bool] = lambda: False
        self._asked = False
        self._main = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()

    def interrupts(self, interrupted: Callable[[], bool]) -> None:
        """Say how it is told whether an interrupt came already: a second one would be an impatient person's."""
        self._interrupted = interrupted

    def asked(self) -> bool:
        """Whether somebody wants the run to end; asks ZenML unless it is known."""
        if not self._asked and self._run_id:
            run = Client().get_pipeline_run(self._run_id, hydrate=False)
            # Without a reason it is a run that ended as stopped because of a step that Ctrl-C hit.
            self._asked = run.status in ENDING and bool(run.get_body().status_reason)
        return self._asked

    def raise_if_graceful(self) -> None:
        """Keep a step from starting.

        Raises:
            RunStoppedException: Somebody wants no further step to start.
        """
        if self.graceful:
            raise RunStoppedException("the run was asked to stop; no further step is started")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the block runs, in a thread that is asleep nearly always."""
        thread = threading.Thread(target=copy_context().run, args=(self._look_on,), name="stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                with prefect_client() as client:
                    state = client.read_flow_run(self._flow_run_id).state
                if state is not None and state.type in WANTED and not self._over.is_set():
                    self._end(state.name != GRACEFUL)
                    if state.name != GRACEFUL:
                        return
            except Exception as error:
                # The next look may find the server back.
                logger.debug("Whether the run is to end could not be told: %s", error)

    def _end(self, at_once: bool) -> None:
        self._asked = True
        if self._run_id and Client().get_pipeline_run(self._run_id, hydrate=False).status not in ENDING:
            publish_stopping(self._run_id, "Cancelled in Prefect.")
        self.graceful = True
        if at_once and self._main and not self._interrupted() and not self._over.is_set():
            # ZenML's signal handler ends the step that runs in this thread.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


current_watch: ContextVar[Watch | None] = ContextVar("prefect_orchestrator_watch", default=None)
"""Of the run that the current context executes."""


@contextmanager
def watched(flow_run_id: UUID, run_id: UUID | None) -> Iterator[Watch]:
    """Execute a run that can be stopped; one that was ends as stopped in ZenML."""
    watch = Watch(flow_run_id, run_id)
    token = current_watch.set(watch)
    try:
        # What a deployment started, a worker ends: it kills the process.
        context = FlowRunContext.get()
        started_by_worker = bool(context and context.flow_run and context.flow_run.deployment_id)
        with nullcontext() if started_by_worker else watch.watching():
            yield watch
    except BaseException as error:
        if run_id and (isinstance(error, STOPS) or watch.asked()):
            stop_run(run_id, "Stopped while it was executed.")
        raise
    finally:
        current_watch.reset(token)


def stop(run: "PipelineRunResponse", flow_run_id: UUID, graceful: bool, folder: Path) -> None:
    """Ask the process that executes a run to end it; call it inside `prefect_api`.

    Args:
        run: ZenML's run, which is stopping already.
        flow_run_id: Its flow run.
        graceful: Whether steps that run may come to their end.
        folder: Where the runs of this machine are marked.

    Raises:
        RuntimeError: It cannot be stopped, with the reason.
    """
    host, process = run.run_metadata.get(HOST), run.run_metadata.get(PROCESS)
    here = process_of(folder, str(run.id))
    if here is None and host == socket.gethostname() and not _lives(run.run_metadata):
        mark_cancelled(flow_run_id, "Its process had ended without a word when somebody stopped the run.")
        stop_run(run.id, "Stopped after its process had ended.")
        return
    wish: State[Any] = State(
        type=StateType.CANCELLING, name=GRACEFUL if graceful else None, message="Stopped in ZenML."
    )
    with prefect_client() as client:
        answer = client.set_flow_run_state(flow_run_id, wish)
    if answer.state is not None and answer.state.is_final() and not answer.state.is_cancelled():
        raise RuntimeError(f"run '{run.name}' cannot be stopped: its flow run is {answer.state.name} already")
    if here is None:
        whose = f"process {process} on {host}" if host else "a process on another machine"
        logger.warning("Run '%s' is executed by %s, which was told through Prefect.", run.name, whose)
