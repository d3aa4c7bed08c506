"""Runs on a work pool: a real server, a real worker, a pipeline in a folder of its own; what both records say."""

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse
from zenml.orchestrators.exceptions import PipelineSubmissionError
from zenml.utils import run_utils, source_utils

from tests.stacks.pipelines import flow_run_of, last_run, statuses, task_runs
from tests.stacks.pool import PATIENCE, POOL, Services, add_stack, awaited, services

PIPELINES = """
    import os
    import time
    from pathlib import Path

    from zenml import pipeline, step

    from beside import GREETING

    TRACE = Path(__file__).with_name("trace")


    def note(word):
        with TRACE.open("a") as file:
            file.write(word + chr(10))


    @step(enable_cache=True)
    def source(size: int) -> int:
        note("source")
        return size


    @step(enable_cache=False)
    def work(size: int, wait: str) -> str:
        note(f"work:{os.getpid()}")
        until = Path(wait) if wait else None
        while until and not until.exists():
            time.sleep(0.05)
        return f"{GREETING} {Path.cwd().name} {os.environ.get('PLACE')}"


    @pipeline
    def pooled(size: int = 1, wait: str = "") -> None:
        work(source(size), wait)


    if __name__ == "__main__":
        import sys

        print("ended", pooled(wait=sys.argv[1]).status)
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    add_stack("pooled", work_pool=POOL)
    before = Client().active_stack_model.id
    Client().activate_stack("pooled")
    with services(folder) as running:
        running.start_worker()
        yield running
    Client().activate_stack(before)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A user's folder: a script with a pipeline, and a module beside it."""
    folder = tmp_path_factory.mktemp("users_folder")
    (folder / "on_pool.py").write_text(textwrap.dedent(PIPELINES))
    (folder / "beside.py").write_text("GREETING = 'hello from'\n")
    sys.path.insert(0, str(folder))
    source_utils.set_custom_source_root(str(folder))
    yield importlib.import_module("on_pool")
    source_utils.set_custom_source_root(None)
    sys.path.remove(str(folder))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that a waiting step waits for."""
    return tmp_path / "gate"


@pytest.fixture
def started(module: ModuleType, there: Services, gate: Path) -> Callable[[], PipelineRunResponse]:
    """Submit a run whose step waits for the gate, and come back once the step is there."""

    def start() -> PipelineRunResponse:
        module.TRACE.unlink(missing_ok=True)
        run = module.pooled.with_options(settings={"orchestrator": {"synchronous": False}})(wait=str(gate))
        awaited(lambda: "work:" in _noted(module), "the step")
        return run

    return start


def _noted(module: ModuleType) -> str:
    return module.TRACE.read_text() if module.TRACE.exists() else ""


def _again(run: PipelineRunResponse) -> PipelineRunResponse:
    return Client().get_pipeline_run(run.id)


def _ended(run: PipelineRunResponse) -> FlowRun:
    def final() -> FlowRun | None:
        flow_run = flow_run_of(run)
        return flow_run if flow_run.state and flow_run.state.is_final() else None

    return awaited(final, "the end of the flow run")


def test_a_run_is_handed_over_by_ids_and_is_in_both_records(module: ModuleType, there: Services) -> None:
    run = module.pooled()
    assert run.status == ExecutionStatus.COMPLETED
    assert run.steps["work"].output.load() == f"hello from {Path(module.__file__ or '').parent.name} None"
    flow_run = flow_run_of(run)
    assert run.orchestrator_run_id == str(flow_run.id) and flow_run.name == run.name
    assert str(run.id) in flow_run.tags and flow_run.work_pool_name == POOL
    assert flow_run.parameters == {"snapshot_id": str(run.snapshot.id), "run_id": str(run.id)}
    assert set(flow_run.job_variables or {}) == {"working_dir"}
    assert str(run.run_metadata["orchestrator_url"]).endswith(f"/runs/flow-run/{flow_run.id}")
    task_runs(flow_run, ["source", "work"])
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"pooled/zenml-{POOL}")
        assert flow_run.deployment_id == deployment.id
        assert (deployment.parameters, deployment.job_variables) == ({}, {})


def test_a_submission_is_quick_and_makes_no_second_deployment(module: ModuleType, there: Services) -> None:
    there.kill_worker()
    try:
        options = {"orchestrator": {"synchronous": False}}
        first = module.pooled.with_options(settings=options)()
        with get_client(sync_client=True) as client:
            known = client.read_deployment_by_name(f"pooled/zenml-{POOL}")
        second = module.pooled.with_options(settings=options)()
        assert flow_run_of(first).deployment_id == flow_run_of(second).deployment_id == known.id
        with get_client(sync_client=True) as client:
            assert client.read_deployment_by_name(f"pooled/zenml-{POOL}").updated == known.updated
        for run in (first, second):
            assert _again(run).status == ExecutionStatus.PROVISIONING
            run_utils.stop_run(_again(run))
            assert _again(run).status == ExecutionStatus.STOPPED
            state = flow_run_of(run).state
            assert state is not None and state.is_cancelled()
    finally:
        there.start_worker()


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"work_pool": "nosuch"}, "no work pool 'nosuch'.*test-pool.*prefect work-pool create nosuch"),
        ({"work_pool": POOL, "work_queue": "fast"}, "no queue 'fast'.*default.*prefect work-queue create fast"),
        ({"work_pool": POOL, "job_variables": {"imgae": "x"}}, "no variable imgae.*working_dir"),
    ],
)
def test_a_refused_submission_is_a_failed_run_with_the_cure(
    configuration: dict[str, object], said: str, module: ModuleType, there: Services
) -> None:
    name = f"refused-{len(Client().list_stacks().items)}"
    add_stack(name, **configuration)
    Client().activate_stack(name)
    try:
        with pytest.raises(PipelineSubmissionError, match=said):
            module.pooled()
    finally:
        Client().activate_stack("pooled")
    assert last_run("pooled").status == ExecutionStatus.FAILED


def test_an_api_that_is_away_fails_the_run(
    module: ModuleType, there: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(PipelineSubmissionError, match=r"127\.0\.0\.1:9/api does not answer"):
        module.pooled()
    assert last_run("pooled").status == ExecutionStatus.FAILED


@pytest.mark.prove
@pytest.mark.parametrize("where", ["prefect", "zenml", "zenml-graceful"])
def test_a_stop_ends_both_records(
    where: str, started: Callable[[], PipelineRunResponse], proof: Callable[[str, object, str], None]
) -> None:
    run = started()
    assert _again(run).status == ExecutionStatus.RUNNING
    if where == "prefect":
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_of(_again(run)).id, Cancelling())
    else:
        run_utils.stop_run(_again(run), graceful=where.endswith("graceful"))
    state = _ended(_again(run)).state
    assert state is not None and state.is_cancelled()
    ended = _again(run)
    assert (str(ended.status), statuses(ended)) == ("stopped", {"source": statuses(ended)["source"], "work": "stopped"})
    proof(f"A run on a work pool is stopped ({where}): both records, steps too", 1, "seen")


@pytest.mark.prove
def test_a_killed_worker_is_found_and_the_next_run_reuses_what_was_done(
    started: Callable[[], PipelineRunResponse],
    module: ModuleType,
    there: Services,
    gate: Path,
    proof: Callable[[str, object, str], None],
) -> None:
    run = started()
    there.kill_worker()
    run_utils.refresh_run_status(_again(run), include_step_updates=True)
    lost = _again(run)
    assert (str(lost.status), statuses(lost)["work"]) == ("failed", "stopped")
    state = flow_run_of(lost).state
    assert state is not None and state.is_crashed()
    there.start_worker()
    gate.touch()
    again = module.pooled(wait=str(gate))
    assert statuses(again) == {"source": "cached", "work": "completed"}
    proof("A worker killed mid-step: both records say so, the next run completes from the cache", 1, "seen")


@pytest.mark.prove
def test_a_server_that_restarts_loses_no_run(
    started: Callable[[], PipelineRunResponse],
    module: ModuleType,
    there: Services,
    gate: Path,
    proof: Callable[[str, object, str], None],
) -> None:
    run = started()
    there.stop_server()
    time.sleep(10)
    there.start_server()
    gate.touch()
    state = _ended(_again(run)).state
    assert state is not None and state.is_completed(), state
    awaited(lambda: _again(run).status.is_finished, "ZenML's record")
    assert _again(run).status == ExecutionStatus.COMPLETED
    assert module.pooled().status == ExecutionStatus.COMPLETED
    proof(
        "Prefect's server is away for ten seconds during a run on a pool: the run and the next one complete", 1, "seen"
    )


@pytest.mark.prove
def test_who_waits_may_be_killed(
    module: ModuleType, there: Services, gate: Path, proof: Callable[[str, object, str], None]
) -> None:
    module.TRACE.unlink(missing_ok=True)
    for number in (2, 9):
        module.TRACE.unlink(missing_ok=True)
        gate.unlink(missing_ok=True)
        watcher = subprocess.Popen(
            [sys.executable, str(module.__file__), str(gate)],
            env=there.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where tests run in the background, SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        awaited(lambda: "work:" in _noted(module), "the step")
        os.kill(watcher.pid, number)
        printed, _ = watcher.communicate(timeout=PATIENCE)
        run = last_run("pooled")
        assert run.status == ExecutionStatus.RUNNING
        assert number == 9 or f"zenml pipeline runs stop {run.id}" in " ".join(printed.split())
        gate.touch()
        state = _ended(run).state
        assert state is not None and state.is_completed()
        assert _again(run).status == ExecutionStatus.COMPLETED
    proof("Who waits for a run on a pool is interrupted, killed: the run completes", 2, "seen")


@pytest.mark.prove
def test_schedules_fire_and_follow(
    module: ModuleType, there: Services, proof: Callable[[str, object, str], None]
) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=5)
    schedule = Schedule(name="often", start_time=soon, interval_second=timedelta(minutes=1))
    assert module.pooled.with_options(schedule=schedule)() is None
    of_schedule = {"schedule_id": Client().get_schedule("often").id}

    def begun() -> list[PipelineRunResponse]:
        return [run for run in Client().list_pipeline_runs(**of_schedule).items if run.orchestrator_run_id]

    (run, *_) = awaited(begun, "a run of the schedule")
    Client().update_schedule("often", active=False)
    flow_run = _ended(run)
    assert flow_run.state is not None and flow_run.state.is_completed(), flow_run.state
    assert _again(run).status == ExecutionStatus.COMPLETED
    assert flow_run.auto_scheduled and str(run.id) in flow_run.tags
    with get_client(sync_client=True) as client:

        def planned() -> int:
            found = client.read_deployment_by_name("pooled/often")
            schedules = client.read_deployment_schedules(found.id)
            assert [each.slug for each in schedules] == ["zenml"]
            return int(schedules[0].active)

        assert planned() == 0 and not Client().get_schedule("often").active
        Client().update_schedule("often", active=True)
        assert planned() == 1
        Client().update_schedule("often", cron_expression="0 3 * * *")
        deployment = client.read_deployment_by_name("pooled/often")
        assert deployment.schedules[0].schedule.cron == "0 3 * * *"  # type: ignore[union-attr]
        Client().delete_schedule("often", soft=True)
        assert all(each.name != "often" for each in client.read_deployments())
    proof("A ZenML schedule fires as a run of its own; update, deactivate, activate, delete follow", 1, "seen")


def test_the_worker_is_told_no_secret(module: ModuleType, there: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_SECRET", "hunter2-of-this-test")
    module.pooled.with_options(settings={"orchestrator": {"synchronous": False}})()
    assert PREFECT_API_URL.value() == there.url
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_of(last_run("pooled")).id)
        assert flow_run.deployment_id is not None
        deployment = client.read_deployment(flow_run.deployment_id)
    assert set(flow_run.parameters) == {"snapshot_id", "run_id"}
    assert all(UUID(each) for each in flow_run.parameters.values())
    assert set(flow_run.job_variables or {}) <= {"working_dir"}
    assert "hunter2" not in flow_run.model_dump_json() + deployment.model_dump_json()
    assert not deployment.job_variables and not deployment.parameters
    awaited(lambda: flow_run_of(last_run("pooled")).state.is_final(), "the run's end")  # type: ignore[union-attr]
