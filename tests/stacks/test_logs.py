"""JSON on request: every line of stderr is an object with the ids that are known, whoever wrote it."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from stacks import logs
from stacks.home import clone_dir

NOISY = """
import logging, subprocess, sys, threading, warnings
from stacks import logs

library = logging.getLogger("some.library")
library.addHandler(logging.StreamHandler())
logs.speak_json(logging.INFO, model="wine", prefect_flow_run_id="f-1")
# What configures logging by a dictionary, as Prefect does at its import, empties the root logger.
import logging.config
logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
logs.speak_json(logging.INFO, model="wine", prefect_flow_run_id="f-1")
logs.identify(mlflow_run_id="m-1")
print("printed\\ntwice", file=sys.stderr)
warnings.warn("a warning\\nof two lines")
library.warning("said once")
library.info("chatter")
logging.getLogger("steps.ingest").info("postgresql://me:hunter2@db/x?token=hunter3 holds %d rows", 7)
try:
    raise ValueError("cannot reach https://me:hunter2@host/")
except ValueError:
    logging.getLogger("flows.run").exception("failed")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
child = "import logging; from stacks import logs; logs.inherit(); logging.getLogger('steps.tune').info('a worker')"
subprocess.run([sys.executable, "-c", child], check=True)
passed_on = subprocess.run([sys.executable, "-c", child], check=True, stderr=subprocess.PIPE, text=True).stderr
sys.stderr.write(passed_on)
raise KeyError("the end")
"""


def _lines(code: str, **variables: str) -> list[dict[str, Any]]:
    env = {**os.environ, "PYTHONPATH": str(clone_dir()), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return _lines(NOISY)


def test_everything_on_stderr_is_json_with_the_ids(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert {"time", "level", "logger", "message", "model", "prefect_flow_run_id", "mlflow_run_id"} <= set(line)
        assert (line["model"], line["prefect_flow_run_id"], line["mlflow_run_id"]) == ("wine", "f-1", "m-1")
        assert line["time"].endswith("+00:00")
    assert [line["logger"] for line in lines] == [
        "stderr",
        "py.warnings",
        "some.library",
        "steps.ingest",
        "flows.run",
        "gauntlet",
        "steps.tune",
        "steps.tune",
        "gauntlet",
    ]


def test_several_lines_and_exceptions_are_one_object(lines: list[dict[str, Any]]) -> None:
    assert lines[0]["message"] == "printed\ntwice"
    assert "a warning\nof two lines" in lines[1]["message"]
    assert lines[4]["exception"].startswith("ValueError: cannot reach https://…@host/\n  ")
    assert lines[5]["exception"].startswith("ZeroDivisionError: division by zero")
    assert (lines[8]["level"], lines[8]["exception"].splitlines()[0]) == ("CRITICAL", "KeyError: 'the end'")


def test_no_secret_is_written(lines: list[dict[str, Any]]) -> None:
    assert "hunter" not in json.dumps(lines)
    assert lines[3]["message"] == "postgresql://…@db/x?token=… holds 7 rows"


def test_the_variable_asks_every_command(home: object) -> None:
    code = "import sys; from flows.command import app; sys.argv[1:] = ['show', 'nobody']; app()"
    (line,) = _lines(code, GAUNTLET_LOG_FORMAT="json")
    assert (line["level"], line["logger"]) == ("ERROR", "gauntlet")
    assert "unknown model 'nobody'" in line["message"]


def test_a_process_that_speaks_text_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    logs.speak_json(model="one")
    try:
        assert logs.speaks_json()
        sys.stderr.write("said\n")
    finally:
        logs.speak_text()
    assert sys.stderr is before
    assert not logs.speaks_json()
    assert logs.CONTEXT_VARIABLE not in os.environ
    assert json.loads(capsys.readouterr().err)["model"] == "one"
