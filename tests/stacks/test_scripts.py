"""The flavor in processes of their own: users' scripts, in whatever form, and the ways they are ended."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.utils.run_utils import stop_run

from stacks.orchestrator.flow_run import prefect_api
from stacks.stack_file import ensure_active
from tests.stacks.pipelines import flow_run_of, last_run

STEPS = """
import os, sys, time
from zenml import pipeline, step

@step
def first() -> int:
    return 20

@step
def second(value: int) -> int:
    if "now" in sys.argv:
        raise ValueError("as asked")
    if "sleep" in sys.argv:
        print("sleeping", flush=True)
        time.sleep(300)
    return value + 1

@pipeline(enable_cache=False)
def {name}():
    second(first())
"""
CALL = """
run = {name}()
print("answer", run.steps["second"].output.load(), flush=True)
if "fail" in sys.argv:
    sys.argv.append("now")
    {name}()
"""
UNGUARDED = STEPS + "\n" + CALL
GUARDED = STEPS + "\nif __name__ == '__main__':\n" + textwrap.indent(CALL, "    ")


@step
def nothing() -> None:
    pass


@pipeline(enable_cache=False)
def anything() -> None:
    nothing()


@pytest.fixture(scope="module", autouse=True)
def _local_stack(home: Path) -> Iterator[None]:
    ensure_active()
    Client().activate_stack("local")
    with prefect_api():
        yield


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(text: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        path = tmp_path / "user_script.py"
        path.write_text(text)
        started.append(
            subprocess.Popen(
                [sys.executable, str(path), *arguments],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "ZENML_LOGGING_VERBOSITY": "WARN", **environment},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until_it_sleeps(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if "sleeping" in line:
            return
    pytest.fail(f"it ended early: {process.stderr.read()[-2000:] if process.stderr else ''}")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def test_a_guarded_script_without_a_server_starts_one_leaves_nothing_behind_and_exits_with_1_when_it_fails(
    home: Path, script: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    own = tmp_path / "prefect"
    own.mkdir()
    # A migrated database saves some seconds.
    shutil.copy(home / "prefect" / "prefect.db", own / "prefect.db")
    process = script(GUARDED.replace("{name}", "script_alone"), "fail", PREFECT_HOME=str(own))
    output, errors = process.communicate(timeout=280)
    assert output.count("answer 21") == 1, errors[-2000:]
    assert process.returncode == 1 and "as asked" in errors
    assert (own / "gauntlet-server.log").exists()
    mine = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(own) in (p.info["cmdline"] or [])]
    assert mine == []
    runs = Client().list_pipeline_runs(pipeline="script_alone", sort_by="created", hydrate=True).items
    assert [str(run.status) for run in runs] == ["completed", "failed"]
    assert {name: str(part.status) for name, part in runs[1].steps.items()} == {
        "first": "completed",
        "second": "failed",
    }
    with sqlite3.connect(own / "prefect.db") as database:
        rows = database.execute("select s.type, s.message from flow_run r join flow_run_state s on r.state_id = s.id")
        states = dict(rows.fetchall())
    assert "as asked" in states["FAILED"]


def test_sigterm_ends_both_records(script: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = script(UNGUARDED.replace("{name}", "script_signalled"), "sleep")
    until_it_sleeps(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=280)
    assert process.returncode != 0
    run = last_run("script_signalled")
    assert run.status.is_finished and not run.in_progress
    state = flow_run_of(run).state
    assert state is not None and state.is_crashed()


def test_the_next_run_sets_the_records_of_a_killed_one_right(script: Callable[..., "subprocess.Popen[str]"]) -> None:
    name = "script_killed"
    process = script(UNGUARDED.replace("{name}", name), "sleep")
    until_it_sleeps(process)
    process.kill()
    process.communicate()
    killed = last_run(name)
    assert killed.status == ExecutionStatus.RUNNING
    anything()
    killed = Client().get_pipeline_run(killed.id)
    assert killed.status == ExecutionStatus.FAILED and not killed.in_progress
    assert {step.status.is_finished for step in killed.steps.values()} == {True}
    state = flow_run_of(killed).state
    assert state is not None and state.is_crashed() and "without a word" in (state.message or "")


def test_zenml_stops_a_run(script: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = script(UNGUARDED.replace("{name}", "script_stopped"), "sleep")
    until_it_sleeps(process)
    stop_run(last_run("script_stopped"))
    process.communicate(timeout=280)
    run = last_run("script_stopped")
    assert run.status == ExecutionStatus.STOPPED
    state = flow_run_of(run).state
    assert state is not None and state.is_final() and not state.is_completed()


EDITED = """
import importlib, sys
from pathlib import Path
from zenml import pipeline, step
from zenml.config.cache_policy import CachePolicy
import logic

@step(cache_policy=CachePolicy(source_dependencies=["logic"]))
def answer() -> int:
    return logic.compute()

@pipeline(enable_cache=True)
def script_edited():
    answer()

for text in ("return 1", "return 1", "return 2", "return 2"):
    Path("logic.py").write_text(f"def compute():\\n    {text}\\n")
    importlib.invalidate_caches()
    importlib.reload(logic)
    step_run = script_edited().steps["answer"]
    print("seen", step_run.status, step_run.output.load(), flush=True)
"""


def test_trap_an_edited_plain_function_is_no_stale_hit_in_an_unguarded_script_with_a_zen_folder(
    script: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    (tmp_path / ".zen").mkdir()
    (tmp_path / ".zen" / "config.yaml").write_text(f"active_stack_id: {Client().active_stack_model.id}\n")
    (tmp_path / "logic.py").write_text("def compute():\n    return 0\n")
    output, errors = script(EDITED, PYTHONDONTWRITEBYTECODE="1").communicate(timeout=280)
    seen = [line.removeprefix("seen ") for line in output.splitlines() if line.startswith("seen ")]
    assert seen == ["completed 1", "cached 1", "completed 2", "cached 2"], errors[-2000:]
    run = last_run("script_edited")
    assert run.stack is not None and run.stack.name == "local"
    state = flow_run_of(run).state
    assert state is not None and state.is_completed()
