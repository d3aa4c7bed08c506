"""How a process of ours speaks when asked for JSON: one object a line on stderr, with the ids of the run it works for.

Everything that Python writes to stderr comes this way: our own messages, warnings, other libraries' loggers and prints,
a last traceback. Only the standard library is needed, so that the served Bento can speak like a run does.
"""

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any

from models.errors import bounded

FORMAT_VARIABLE = "GAUNTLET_LOG_FORMAT"
CONTEXT_VARIABLE = "GAUNTLET_LOG_CONTEXT"
IDS = ("model", "version", "prefect_flow_run_id", "zenml_run_id", "step", "mlflow_run_id")
ENGINES = ("zenml", "prefect", "bentoml")
OURS = ("models", "stacks", "bentos", "steps", "flows", "gauntlet", "stderr")
_USER = re.compile(r"//[^/\s@]*@")
_SECRET = re.compile(r"(?i)\b(password|passwd|secret|token|api_?key|access_?key)=[^\s&'\"]+")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_EXCEPTION = 4_000
_BEGIN = '{"time": "'

_ids: dict[str, str] = {}
_factories: list[Callable[..., logging.LogRecord]] = []


def masked(text: str) -> str:
    """`text` without the user and password of URLs and the values of `password=`, `token=` and their like."""
    return _SECRET.sub(r"\1=…", _USER.sub("//…@", text))


def wants_json() -> bool:
    """Whether `GAUNTLET_LOG_FORMAT` asks every process for JSON."""
    return os.environ.get(FORMAT_VARIABLE, "").lower() == "json"


def speaks_json() -> bool:
    """Whether this process writes JSON."""
    return _handler() is not None


def identify(**ids: str | None) -> None:
    """Have all records of this process, and of those that it starts from now on, carry these ids besides the others."""
    _ids.update({name: value for name, value in ids.items() if value})
    if logging.getLogRecordFactory() is not _stamped:
        _factories.append(logging.getLogRecordFactory())
        logging.setLogRecordFactory(_stamped)
    if handler := _handler():
        _hand_down(handler.level)


def speak_json(level: int = logging.INFO, **ids: str | None) -> None:
    """Write JSON to stderr from now on, and nothing else; a second call changes level and ids.

    Args:
        level: Of what is written; other libraries' messages begin with warnings.
        ids: What every record carries, for example the model; those of an earlier call are forgotten.
    """
    _ids.clear()
    _take_consoles()
    root = logging.getLogger()
    handler = _handler()
    if handler is None:
        handler = JsonHandler(sys.stderr)
        sys.stderr = handler.lines
    if handler not in root.handlers:
        # Whoever configures logging by a dictionary, as Prefect does when it is imported, empties the root's list.
        root.addHandler(handler)
    handler.setLevel(level)
    root.setLevel(min(logging.INFO, level))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda raised: _log_uncaught(raised.exc_type, raised.exc_value, raised.exc_traceback)
    identify(**ids)
    _hand_down(level)


def speak_text() -> None:
    """Undo `speak_json`, for a process that runs one model after another."""
    _ids.clear()
    os.environ.pop(CONTEXT_VARIABLE, None)
    if handler := _handler():
        logging.getLogger().removeHandler(handler)
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
        sys.stderr = handler.original


def inherit() -> None:
    """Speak as the process that started this one: for workers and for the served Bento."""
    try:
        context = json.loads(os.environ.get(CONTEXT_VARIABLE, ""))
        speak_json(context["level"], **context["ids"])
    except (ValueError, KeyError, TypeError):
        if wants_json():
            speak_json()


def _stamped(*args: Any, **options: Any) -> logging.LogRecord:
    """A record with this process's ids on it, so that they go along where a record is handed to another process."""
    record = _factories[-1](*args, **options)
    for name, value in _ids.items():
        setattr(record, name, value)
    return record


def _hand_down(level: int) -> None:
    os.environ[CONTEXT_VARIABLE] = json.dumps({"level": level, "ids": _ids})


def _handler() -> "JsonHandler | None":
    return sys.stderr.handler if isinstance(sys.stderr, _Lines) else None


def _take_consoles() -> None:
    """Take away the handlers that print on the console, wherever libraries put them: else all would be said twice."""
    loggers = [logging.getLogger(), *(known for known in logging.root.manager.loggerDict.values())]
    for logger in loggers:
        if not isinstance(logger, logging.Logger):
            continue
        for handler in list(logger.handlers):
            if _prints(handler):
                logger.removeHandler(handler)
                logger.propagate = True


def _prints(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.FileHandler):
        return False
    stale = isinstance(handler, JsonHandler) and handler is not _handler()
    return (
        stale or isinstance(handler, logging.StreamHandler) or type(handler).__name__ in ("RichHandler", "RunHandler")
    )


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger("gauntlet").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))  # type: ignore[arg-type]


class JsonHandler(logging.Handler):
    """Writes records as JSON objects, one a line, to the stream that stderr was."""

    def __init__(self, original: IO[str]) -> None:
        super().__init__()
        self.original = original
        self.lines = _Lines(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or nothing where it is another library's chatter."""
        try:
            room = record.name.split(".")[0]
            if record.levelno >= logging.WARNING or room in OURS or room in ENGINES or self.level <= logging.DEBUG:
                self.write(described(record))
        except Exception:
            self.handleError(record)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write an object as one line, in one go, so that lines of several processes do not mix."""
        self.write_text(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def write_text(self, text: str) -> None:
        """Write whole lines as they are."""
        # Past ZenML's wrapper around `write`, which stores what is written as errors of the running step.
        type(self.original).write(self.original, text)
        self.original.flush()


class _Lines(io.TextIOBase):
    """What takes the place of stderr: text that somebody prints becomes objects of the logger `stderr`."""

    def __init__(self, handler: JsonHandler) -> None:
        self.handler = handler
        self._waiting = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            self._waiting += text
            if not self._waiting.endswith("\n") and len(self._waiting) < 10_000:
                return len(text)
            said, self._waiting = _ANSI.sub("", self._waiting).strip(), ""
        if said.startswith(_BEGIN):
            # A process of ours spoke, and this one passes it on.
            self.handler.write_text(said + "\n")
        elif said:
            record = logging.LogRecord("stderr", logging.INFO, "", 0, said, None, None)
            self.handler.write(described(record))
        return len(text)

    def flush(self) -> None:
        self.handler.original.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.handler.original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


def described(record: logging.LogRecord) -> dict[str, Any]:
    """A record as a JSON-ready object: time, level, logger, message, ids that are known, an alert, what was raised."""
    line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "message": bounded(masked(record.getMessage())),
        **_ids_of(record),
    }
    if alert := getattr(record, "alert", None):
        line["alert"] = alert
    if record.exc_info and record.exc_info[1]:
        line["exception"] = bounded(masked("\n".join(_told(record.exc_info[1]))), _EXCEPTION)
    elif record.exc_text:
        line["exception"] = bounded(masked(record.exc_text), _EXCEPTION)
    return line


def _told(error: BaseException) -> Iterator[str]:
    """Type and text of an exception, then where it came from, the innermost place first; no line of code, no value."""
    yield f"{type(error).__name__}: {bounded(str(error), 800)}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        yield f"  {frame.filename}:{frame.lineno} {frame.name}"


def _ids_of(record: logging.LogRecord) -> dict[str, str]:
    """What is known of the run: by the record (which may be another process's), by the caller's context, by us."""
    # The orchestrator binds a run's and a step's ids to the context; where there is none of it, nothing is imported.
    contexts = sys.modules.get("structlog.contextvars")
    bound = contexts.get_contextvars() if contexts else {}
    found = {name: getattr(record, name, None) or bound.get(name) or _ids.get(name) for name in IDS}
    return {name: str(value) for name, value in found.items() if value}
