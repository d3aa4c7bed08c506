"""Runs on the real engines while their stack is switched, and while ZenML's database is locked."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ExecutionMode, ExecutionStatus

import stacks.stack_file as stack_file
from stacks.orchestrator.flow_run import prefect_api
from stacks.stack_file import apply, ensure_active
from tests.stacks.pipelines import flow_run_of, last_run, statuses


@pytest.fixture(autouse=True)
def _local_stack(home: Path) -> Iterator[None]:
    ensure_active()
    Client().activate_stack("local")
    with prefect_api():
        yield
    Client().activate_stack("local")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where steps leave files."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    return tmp_path


def until(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


@step
def first() -> str:
    folder = Path(os.environ["FOLDER"])
    (folder / "began").touch()
    until(folder / "go")
    return "one"


@step
def second(word: str) -> str:
    return f"{word}, two"


@pipeline(enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def chained() -> None:
    second(first())


def meanwhile(folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Act while the first step runs, then let it end."""

    def work() -> None:
        until(folder / "began")
        try:
            act()
        finally:
            (folder / "go").touch()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_run_stays_on_its_stack_when_another_is_set_or_its_own_is_applied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(stack_file, "stacks_dir", lambda: folder)

    def write(environment: dict[str, str]) -> None:
        parts = {
            "orchestrator": {"flavor": "prefect"},
            "artifact_store": {"flavor": "local", "config": {"path": str(elsewhere)}},
            "environment": environment,
        }
        (folder / "switched.yaml").write_text(yaml.safe_dump(parts))

    write({})
    apply("switched")

    def switch() -> None:
        Client().activate_stack("switched")
        write({"COLOUR": "blue"})
        assert apply("switched")

    thread = meanwhile(folder, switch)
    run = chained()
    thread.join()
    assert run.status == ExecutionStatus.COMPLETED and run.stack is not None and run.stack.name == "local"
    uris = [run.steps[name].output.uri for name in ("first", "second")]
    assert not any(uri.startswith(str(elsewhere)) for uri in uris)
    state = flow_run_of(run).state
    assert state is not None and state.is_completed()
    assert Client().active_stack_model.name == "switched"
    # The next one is where the switch says.
    run = chained()
    assert run.stack is not None and run.stack.name == "switched"
    assert run.steps["second"].output.uri.startswith(str(elsewhere))


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of ZenML's database, as another process would."""
    database = Client().zen_store.engine.url.database  # type: ignore[attr-defined]
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_zenmls_database_locked_for_seconds_only_delays_a_run(folder: Path) -> None:
    def lock() -> None:
        with locked():
            (folder / "go").touch()
            time.sleep(3)

    thread = meanwhile(folder, lock)
    run = chained()
    thread.join()
    assert run.status == ExecutionStatus.COMPLETED
    assert statuses(run) == {"first": "completed", "second": "completed"}
    state = flow_run_of(run).state
    assert state is not None and state.is_completed()


def test_locked_for_too_long_is_a_clear_error_and_the_next_run_sets_both_records_right(folder: Path) -> None:
    engine = Client().zen_store.engine  # type: ignore[attr-defined]
    patience = 0.5

    def impatient(connection: sqlite3.Connection, _: object) -> None:
        # ZenML's own patience is a minute.
        connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")

    sa.event.listen(engine, "connect", impatient)
    engine.dispose()
    over = threading.Event()

    def lock() -> None:
        with locked():
            (folder / "go").touch()
            over.wait(240)

    thread = meanwhile(folder, lock)
    try:
        with pytest.raises(Exception, match="database is locked"):
            chained()
    finally:
        over.set()
        thread.join()
        sa.event.remove(engine, "connect", impatient)
        engine.dispose()
    left = last_run("chained")
    state = flow_run_of(left).state
    assert state is not None and state.is_failed() and "database is locked" in (state.message or "")
    run = chained()
    assert run.status == ExecutionStatus.COMPLETED
    left = Client().get_pipeline_run(left.id)
    assert left.status == ExecutionStatus.FAILED and not left.in_progress
    assert set(statuses(left)) == {"first"} and statuses(left)["first"] in ("stopped", "failed")
