"""A step in a process of its own: forked from the warm server, told what to run, telling what it does and how it ends.

What goes up the channel, a JSON object a line: `line` (printed text), `record` (a log record), `step` (ZenML has begun
a record of the step), `done`, `failed`. What is written past Python, to descriptors 1 and 2, goes up the raw pipe.
"""

import atexit
import contextlib
import ctypes
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.constants import (
    ENV_ZENML_ACTIVE_PROJECT_ID,
    ENV_ZENML_ACTIVE_STACK_ID,
    ENV_ZENML_DISABLE_DATABASE_MIGRATION,
    ENV_ZENML_DISABLE_STEP_LOGS_STORAGE,
)
from zenml.logger import add_zenml_filters
from zenml.utils.env_utils import get_runtime_environment, temporary_environment
from zenml.utils.filesync_model import FileSyncModel

from stacks.orchestrator.attempt import STOPS, attempt, isolated_attempt, step_begins
from stacks.orchestrator.failure import described
from stacks.orchestrator.place import PlaceError

if TYPE_CHECKING:
    from zenml.config.step_configurations import StepConfiguration
    from zenml.models import PipelineSnapshotResponse

NO_STORED_LOGS = ENV_ZENML_DISABLE_STEP_LOGS_STORAGE
PLAIN = (str, int, float, bool, type(None))
# Attributes of every log record; what else one carries goes along as extras.
COMMON = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Channel:
    """The way up; whole lines only, whichever threads write."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: str, **values: Any) -> None:
        """Write one object; a parent that is gone is none of the sender's business."""
        line = json.dumps({"kind": kind, **values}, default=str).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(line)


class LineWriter(io.TextIOBase):
    """Stands in for stdout or stderr: sends whole lines, each thread's own, and of a redrawn line the last state."""

    def __init__(self, channel: Channel, stream: str, descriptor: int) -> None:
        self._channel = channel
        self._stream = stream
        self._descriptor = descriptor
        self._begun = threading.local()
        self.buffer = os.fdopen(descriptor, "wb", buffering=0, closefd=False)

    encoding = "utf-8"
    errors = "replace"

    def write(self, text: str) -> int:
        """Take text, send the lines that it completes."""
        *lines, rest = (getattr(self._begun, "text", "") + text).split("\n")
        for line in lines:
            self._send(line.removesuffix("\r"))
        self._begun.text = rest.rpartition("\r")[2] if rest.count("\r") > 1 else rest
        return len(text)

    def flush(self) -> None:
        """Send a line that is begun, unless it is being redrawn."""
        text = getattr(self._begun, "text", "")
        if text and "\r" not in text:
            self._begun.text = ""
            self._send(text)

    def finish(self) -> None:
        """Send what is left of the last line."""
        text, self._begun.text = getattr(self._begun, "text", ""), ""
        if text:
            self._send(text)

    def _send(self, line: str) -> None:
        self._channel.send("line", stream=self._stream, text=line.rpartition("\r")[2])

    def fileno(self) -> int:
        """The descriptor that a subprocess would write to."""
        return self._descriptor

    def writable(self) -> bool:
        """Yes."""
        return True


class RecordSender(logging.Handler):
    """Sends log records up, to be handled by the loggers of the process that runs the pipeline."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        add_zenml_filters(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, its text ready and its traceback as text."""
        try:
            text = record.exc_text
            if record.exc_info and not text:
                text = logging.Formatter().formatException(record.exc_info)
            extras = {k: v for k, v in vars(record).items() if k not in COMMON and isinstance(v, PLAIN)}
            own = {k: getattr(record, k) for k in ("name", "levelno", "pathname", "lineno", "funcName")}
            self._channel.send("record", **own, message=record.getMessage(), exc_text=text, extras=extras)
        except Exception:
            self.handleError(record)


def main(connection: socket.socket, output: int) -> None:
    """Run the job that the channel names and end the process; exit code 0 when the job's end was told."""
    server = os.getppid()
    os.setsid()
    _die_with_parent(server)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    with connection.makefile("rb") as file:
        job = json.loads(_line(file))
    channel = Channel(connection)
    writers = LineWriter(channel, "stdout", 1), LineWriter(channel, "stderr", 2)
    sys.stdout, sys.stderr = writers
    sys.__stdout__, sys.__stderr__ = writers  # type: ignore[misc,assignment]
    _run(job, channel)
    for writer in writers:
        writer.finish()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for writer in writers:
        writer.finish()
    os._exit(0)


def _line(file: Any) -> bytes:
    line: bytes = file.readline()
    if not line.endswith(b"\n"):
        # Whoever asked for this process is gone.
        os._exit(0)
    return line


def _die_with_parent(parent: int) -> None:
    """On Linux, have the kernel kill this process when the server ends in whatever way."""
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _take_place(job: dict[str, Any], channel: Channel) -> None:
    """Be where the pipeline was called: its folder, arguments, environment, levels of loggers; but with own dice."""
    os.chdir(job["folder"])
    sys.argv[:] = job["arguments"]
    os.environ.clear()
    os.environ.update(job["environment"])
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(RecordSender(channel))
    for name, level in job["levels"].items():
        # Setting a level forgets what all loggers have found out about theirs.
        if (each := logging.getLogger(name)).level != level:
            each.setLevel(level)


def _run(job: dict[str, Any], channel: Channel) -> None:
    from stacks.orchestrator.orchestrator import Active, executing

    try:
        _take_place(job, channel)
        snapshot = _snapshot(job)
        # The parent stores the log: it has all of it, also when this process is killed.
        stored = os.environ.get(NO_STORED_LOGS)
        os.environ[NO_STORED_LOGS] = "true"

        def begins(step_run_id: UUID) -> None:
            del os.environ[NO_STORED_LOGS]
            if stored is not None:
                os.environ[NO_STORED_LOGS] = stored
            channel.send("step", id=str(step_run_id))

        if job.get("asks_zenml"):
            begun = job.get("step_run")
            steps = snapshot.step_configurations
            step = Client().get_run_step(UUID(begun)).config if begun else steps[job["step"]].config
            os.environ.update(_environment_in_zenml(snapshot, step))
        active = Active(job["orchestrator_run_id"], job["flow_run_url"], job["zenml_run_id"])
        token = step_begins.set(begins)
        try:
            with executing(active):
                if begun := job.get("step_run"):
                    step_run = isolated_attempt(snapshot, UUID(begun))
                else:
                    step_run = attempt(snapshot, job["step"], active.orchestrator_run_id)
        finally:
            step_begins.reset(token)
        channel.send("done", id=str(step_run.id), status=str(step_run.status))
    except BaseException as error:
        channel.send("failed", stopped=isinstance(error, STOPS), **described(error))


def _snapshot(job: dict[str, Any]) -> "PipelineSnapshotResponse":
    """The snapshot of the run, by the first client of this process.

    Raises:
        PlaceError: ZenML cannot be asked for it where steps get nothing but ids.
    """
    try:
        with _only_read():
            GlobalConfiguration._reset_instance()
            Client._reset_instance()
            store = Client().zen_store
        return store.get_snapshot(UUID(job["snapshot"]), step_configuration_filter=[job["step"]])
    except Exception as error:
        if not job.get("asks_zenml"):
            raise
        raise PlaceError(
            f"ZenML could not be asked for the run ({type(error).__name__}): a Dask worker needs the caller's ZenML "
            "store, by ZENML_STORE_URL or ZENML_CONFIG_PATH in its environment"
        ) from error


def _environment_in_zenml(snapshot: "PipelineSnapshotResponse", step: "StepConfiguration") -> dict[str, str]:
    """Variables of a step as ZenML gives them to the process that submits the run, for one that is elsewhere.

    Secrets of the stack are none of them: ZenML's step runner adds those by itself.
    """
    assert snapshot.stack is not None
    return {
        **GlobalConfiguration().get_config_environment_vars(),
        ENV_ZENML_ACTIVE_STACK_ID: str(snapshot.stack.id),
        ENV_ZENML_ACTIVE_PROJECT_ID: str(snapshot.project_id),
        **get_runtime_environment(step, snapshot.stack),
    }


@contextmanager
def _only_read() -> Iterator[None]:
    """Take ZenML's configuration and database as the calling process left them, for the first client of this one.

    It would write the configuration that it has read, in place: a process that reads meanwhile finds half a file. And
    it would look for migrations, which takes a third of a second.
    """
    written = FileSyncModel.write_config, GlobalConfiguration._write_config
    FileSyncModel.write_config = GlobalConfiguration._write_config = lambda _: None
    try:
        with temporary_environment({ENV_ZENML_DISABLE_DATABASE_MIGRATION: "true"}):
            yield
    finally:
        FileSyncModel.write_config, GlobalConfiguration._write_config = written
