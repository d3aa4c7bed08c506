"""Where the output of a step's own process goes: the caller's console and loggers, Prefect's log, ZenML's log."""

import logging
import sys
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.context import TaskRunContext
from prefect.logging.handlers import APILogHandler
from zenml.client import Client
from zenml.utils.logging_utils import LoggingContext, is_step_logging_enabled, setup_logging_context

if TYPE_CHECKING:
    from zenml.config.step_configurations import StepConfiguration
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

LEVELS = {"stdout": logging.INFO, "stderr": logging.ERROR}


class StepLog:
    """The log of one attempt at a step, line by line, in one order everywhere.

    It belongs to the task run of the current context. What comes before ZenML has a record of the step waits for it.
    """

    def __init__(
        self, step: "StepConfiguration", snapshot: "PipelineSnapshotResponse", run: "PipelineRunResponse"
    ) -> None:
        self._run = run
        self._stored = is_step_logging_enabled(step, snapshot.pipeline_configuration)
        self._waiting: list[logging.LogRecord] = []
        self._zenml: LoggingContext | None = None
        self._prefect = APILogHandler()
        self._last = 0.0
        context = TaskRunContext.get()
        self._ids = {"flow_run_id": context.task_run.flow_run_id, "task_run_id": context.task_run.id} if context else {}

    def line(self, stream: str, text: str) -> None:
        """A line that was printed."""
        console = sys.stdout if stream == "stdout" else sys.stderr
        console.write(f"{text}\n")
        console.flush()
        self._keep({"name": stream, "levelno": LEVELS[stream]}, text)

    def record(self, values: dict[str, Any]) -> None:
        """A log record: the caller's loggers handle it as if it had been made here."""
        extras = values.pop("extras")
        text, trace = values.pop("message"), values.pop("exc_text")
        shown = _record(values | extras, text)
        shown.exc_text = trace
        owner = logging.getLogger(shown.name)
        if owner.isEnabledFor(shown.levelno):
            owner.handle(shown)
        self._keep(values, f"{text}\n{trace}" if trace else text, to_prefect=not _sent_to_prefect(owner))

    def begin(self, step_run_id: UUID) -> None:
        """ZenML has a record of the step: store what waited for it, and what will come, in its log."""
        if not self._stored:
            self._waiting.clear()
            return
        step_run = Client().get_run_step(step_run_id)
        self._zenml = setup_logging_context(source="step", step_run=step_run, pipeline_run=self._run)
        self._zenml.begin()
        for record in self._waiting:
            self._zenml.emit(record)
        self._waiting.clear()

    def end(self) -> None:
        """Nothing more will come."""
        if self._zenml:
            self._zenml.end()
            self._zenml = None

    def _keep(self, values: dict[str, Any], text: str, to_prefect: bool = True) -> None:
        record = _record(values | self._ids, text)
        # Prefect sorts by time.
        self._last = record.created = max(time.time(), self._last + 1e-6)
        if to_prefect and self._ids and text.strip():
            self._prefect.emit(record)
        if self._zenml:
            self._zenml.emit(record)
        elif self._stored:
            self._waiting.append(record)


def _sent_to_prefect(logger: logging.Logger | None) -> bool:
    """Whether a logger's own handlers send to Prefect: Prefect's loggers, and those that its settings name."""
    while logger is not None:
        if any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _record(values: dict[str, Any], text: str) -> logging.LogRecord:
    level = logging.getLevelName(values["levelno"])
    return logging.makeLogRecord({**values, "levelname": level, "msg": text, "args": ()})
