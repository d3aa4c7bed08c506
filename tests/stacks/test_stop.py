"""Stopping runs of this process on the real engines: in ZenML, in Prefect, gracefully or at once."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import State, StateType
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ExecutionStatus, StepRuntime
from zenml.exceptions import RunStoppedException
from zenml.utils.run_utils import stop_run

from stacks.orchestrator import stop as stopping
from stacks.orchestrator.flow_run import prefect_api, prefect_client
from stacks.stack_file import ensure_active
from tests.stacks.pipelines import flow_run_of, last_run, statuses, task_runs


@pytest.fixture(scope="module", autouse=True)
def _local_stack(home: Path) -> Iterator[None]:
    ensure_active()
    Client().activate_stack("local")
    with prefect_api():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where steps leave files."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    return tmp_path


def until_found(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.05)


@step
def waits(patience: float) -> None:
    """Until it is stopped, or until the file `go` is there."""
    folder = Path(os.environ["FOLDER"])
    (folder / "began").touch()
    deadline = time.monotonic() + patience
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (folder / "done").touch()


@step(runtime=StepRuntime.ISOLATED)
def waits_alone() -> None:
    (Path(os.environ["FOLDER"]) / "began").touch()
    time.sleep(400)


@step
def next_one() -> None:
    (Path(os.environ["FOLDER"]) / "next").touch()


@pipeline(enable_cache=False)
def stopped() -> None:
    waits(300.0)
    next_one(after="waits")


@pipeline(dynamic=True, enable_cache=False)
def stopped_growing() -> None:
    waits_alone()
    next_one()


def cancel_in_prefect(name: str, folder: Path) -> None:
    """What `prefect flow-run cancel` does."""
    flow_run_id = UUID(last_run(name).orchestrator_run_id)
    with prefect_api(), prefect_client() as client:
        client.set_flow_run_state(flow_run_id, State(type=StateType.CANCELLING))


def stop_in_zenml(name: str, folder: Path) -> None:
    stop_run(last_run(name))


def stop_gracefully(name: str, folder: Path) -> None:
    stop_run(last_run(name), graceful=True)
    # It is noticed while the step runs, and the step may end.
    until_found(folder / "noticed")
    (folder / "go").touch()


@pytest.fixture(autouse=True)
def _noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a file when the watch has noticed that the run is to end."""
    end = stopping.Watch._end

    def noted(self: stopping.Watch, at_once: bool) -> None:
        end(self, at_once)
        (folder / "noticed").touch()

    monkeypatch.setattr(stopping.Watch, "_end", noted)


def once_it_runs(folder: Path, act: Callable[[str, Path], None], name: str) -> threading.Thread:
    def wait_and_act() -> None:
        until_found(folder / "began")
        act(name, folder)

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.parametrize("act", [cancel_in_prefect, stop_in_zenml, stop_gracefully])
def test_a_stop_ends_both_records(act: Callable[[str, Path], None], folder: Path) -> None:
    begun = time.monotonic()
    thread = once_it_runs(folder, act, "stopped")
    with pytest.raises(RunStoppedException):
        stopped()
    thread.join()
    assert time.monotonic() - begun < 290, "it did not wait for the step's own end"
    gracefully = act is stop_gracefully
    assert (folder / "done").exists() is gracefully and not (folder / "next").exists()
    run = last_run("stopped")
    assert run.status == ExecutionStatus.STOPPED and not run.in_progress
    assert statuses(run) == {"waits": "completed" if gracefully else "stopped"}
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_cancelled()
    state = task_runs(flow_run, ["waits"])["waits"].state
    assert state is not None and (state.is_completed() if gracefully else state.is_cancelled())
    assert run.run_metadata[stopping.PROCESS] == os.getpid()
    assert run.run_metadata[stopping.HOST] == socket.gethostname()


@pytest.mark.parametrize("act", [cancel_in_prefect, stop_in_zenml])
def test_a_dynamic_run_ends_with_its_isolated_steps(act: Callable[[str, Path], None], folder: Path) -> None:
    begun = time.monotonic()
    thread = once_it_runs(folder, act, "stopped_growing")
    with pytest.raises((RunStoppedException, KeyboardInterrupt)):
        stopped_growing()
    thread.join()
    assert time.monotonic() - begun < 390 and not (folder / "next").exists()
    run = last_run("stopped_growing")
    assert run.status == ExecutionStatus.STOPPED and statuses(run) == {"waits_alone": "stopped"}
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_cancelled()
    state = task_runs(flow_run, ["stopped_growing", "waits_alone"])["waits_alone"].state
    assert state is not None and state.is_cancelled()


SCRIPT = """
from zenml import pipeline, step
from zenml.client import Client
from tests.stacks.test_stop import waits

@pipeline(enable_cache=False)
def abandoned() -> None:
    waits(300.0)

if __name__ == "__main__":
    abandoned()
"""


@pytest.fixture
def killed(folder: Path) -> UUID:
    """A run whose process was killed in its step."""
    (folder / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen([sys.executable, str(folder / "script.py")], env=env, stderr=errors)
        until_found(folder / "began")
        process.kill()
        process.wait()
    run = last_run("abandoned")
    assert run.status == ExecutionStatus.RUNNING
    return run.id


def test_a_killed_run_is_told_by_a_refresh_and_another_machines_is_asked_through_prefect(
    killed: UUID, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from zenml.utils.run_utils import refresh_run_status

    with monkeypatch.context() as patch:
        patch.setattr(stopping, "process_of", lambda *_: None)
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        flow_run_id = UUID(Client().get_pipeline_run(killed).orchestrator_run_id)
        run = Client().get_pipeline_run(killed)
        stopping.stop(run, flow_run_id, graceful=False, folder=Path("nowhere"))
    state = flow_run_of(run).state
    assert state is not None and state.type == StateType.CANCELLING
    refresh_run_status(Client().get_pipeline_run(killed), include_step_updates=True)
    run = Client().get_pipeline_run(killed)
    assert run.status in (ExecutionStatus.FAILED, ExecutionStatus.STOPPED) and not run.in_progress
    assert statuses(run) == {"waits": "stopped"}
    state = flow_run_of(run).state
    assert state is not None and state.is_final()


def test_a_killed_run_is_stopped_by_hand(killed: UUID) -> None:
    stop_run(Client().get_pipeline_run(killed))
    run = Client().get_pipeline_run(killed)
    assert (str(run.status), statuses(run)) == ("stopped", {"waits": "stopped"})
    state = flow_run_of(run).state
    assert state is not None and state.is_cancelled()


def test_a_run_of_another_home_of_this_machine_is_told_from_a_dead_one() -> None:
    here = stopping.whereabouts()
    assert stopping._lives(here)
    # The number was given to another process since, or says nothing about this machine.
    assert not stopping._lives(here | {stopping.STARTED: here[stopping.STARTED] - 60})
    assert not stopping._lives(here | {stopping.HOST: "elsewhere"})
    assert not stopping._lives({stopping.HOST: here[stopping.HOST], stopping.PROCESS: os.getpid()})
    with subprocess.Popen(["sleep", "300"]) as ended:
        started = psutil.Process(ended.pid).create_time()
        ended.kill()
    assert not stopping._lives(here | {stopping.PROCESS: ended.pid, stopping.STARTED: started})
