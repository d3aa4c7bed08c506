"""A step's process as whoever waits for it sees it: what it says is kept, and how it ended is told."""

import logging
import signal
from typing import Any
from uuid import UUID

from stacks.orchestrator.failure import StepFailed, rebuilt
from stacks.orchestrator.flow_run import show_running, show_waiting
from stacks.orchestrator.place import PlaceError, StepProcess
from stacks.orchestrator.pool import name_of_signal
from stacks.orchestrator.step_log import StepLog

logger = logging.getLogger(__name__)


class ProcessDied(StepFailed):
    """A step's process ended before it could tell how the step did.

    Attributes:
        step_run_id: ZenML's record of the step, if it was begun.
    """

    def __init__(self, reason: str, step_run_id: UUID | None) -> None:
        super().__init__(reason)
        self.step_run_id = step_run_id


def levels() -> dict[str, int]:
    """Levels of this process's loggers, for a step's process to take over."""
    loggers = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
    return {key: each.level for key, each in loggers.items() if isinstance(each, logging.Logger)}


def follow(process: StepProcess, name: str, log: StepLog) -> str:
    """Keep a process's output until it ends.

    Args:
        process: Of the step.
        name: Name of the step.
        log: Where its output goes.

    Returns:
        ZenML's status of the finished step.

    Raises:
        BaseException: What the step raised.
        ProcessDied: The process ended without a word.
    """
    step_run_id: UUID | None = None
    end: dict[str, Any] = {}
    exit_code: int | None = None
    reason = None
    try:
        for message in process.messages():
            match message.pop("kind"):
                case "line":
                    log.line(**message)
                case "record":
                    log.record(message)
                case "step":
                    step_run_id = UUID(message["id"])
                    log.begin(step_run_id)
                case "waits":
                    show_waiting(message["for"])
                case "place":
                    show_running()
                    logger.info("Step `%s` runs on %s.", name, message["name"])
                case "exit":
                    exit_code, reason = message["status"], message["reason"]
                case _:
                    end = message
    except PlaceError as error:
        reason = str(error)
    if "status" in end:
        return str(end["status"])
    if end:
        raise rebuilt(end)
    reason = f"the process of step '{name}' ended before the step did: {reason or _how_it_ended(exit_code)}"
    log.line("stderr", reason)
    raise ProcessDied(reason, step_run_id)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "nobody saw how"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    hint = ", as when memory runs out" if exit_code == -signal.SIGKILL else ""
    return f"{name_of_signal(exit_code)}{hint}"
