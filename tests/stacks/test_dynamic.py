"""Dynamic pipelines on the real engines: what is a task run, which process each step and each hook is in."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
import yaml
from zenml import pipeline, step
from zenml.client import Client
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode, ExecutionStatus, StepRuntime
from zenml.models import PipelineRunResponse

import stacks.stack_file as stack_file
from stacks.orchestrator import isolated
from stacks.orchestrator.flow_run import TaskPolicy, prefect_api
from stacks.orchestrator.orchestrator import Active
from stacks.stack_file import apply, ensure_active
from tests.stacks.pipelines import flow_run_of, last_run, statuses, task_runs

HERE = str(os.getpid())


@pytest.fixture(scope="module", autouse=True)
def _stack_of_two_at_once(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ensure_active()
    before = Client().active_stack_model.id
    folder = tmp_path_factory.mktemp("stacks")
    parts = {
        "orchestrator": {"flavor": "prefect", "config": {"max_parallel": 2}},
        "artifact_store": {"flavor": "local"},
    }
    (folder / "growing.yaml").write_text(yaml.safe_dump(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_file, "stacks_dir", lambda: folder)
        apply("growing")
    Client().activate_stack("growing")
    with prefect_api():
        yield
    Client().activate_stack(before)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """What steps and hooks noted, in order: a word and the process that noted it."""
    path = tmp_path / "trace"
    monkeypatch.setenv("TRACE", str(path))
    return lambda: [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def note(word: str) -> int:
    path = Path(os.environ["TRACE"])
    before = path.read_text().split().count(word) if path.exists() else 0
    with path.open("a") as file:
        file.write(f"{word} {os.getpid()}\n")
    return before


def begin() -> str:
    note("init")
    return "state"


def end() -> None:
    note("cleanup")


def on_good() -> None:
    note("success")


def on_bad(error: BaseException) -> None:
    note(f"failure:{type(error).__name__}")


@step
def numbers(count: int) -> list[int]:
    note("numbers")
    return list(range(count))


@step(runtime=StepRuntime.ISOLATED)
def square(value: int) -> int:
    note(f"square:{value}")
    return value * value


@step
def total(values: list[int]) -> int:
    note("total")
    return sum(values)


@step(runtime=StepRuntime.ISOLATED)
def alone(value: int) -> int:
    note("alone")
    sys.stdout.write("said in its own process\n")
    return value + 1


@pipeline(dynamic=True, enable_cache=False, on_init=begin, on_cleanup=end, on_success=on_good, on_failure=on_bad)
def grown(count: int) -> None:
    """A loop by map, a condition, a loop by hand: steps inline and isolated."""
    squares = square.map(numbers(count))
    result = total(squares)
    while result.load() < 7:
        result = alone(result)


@pytest.fixture(scope="module")
def grown_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PipelineRunResponse, list[list[str]]]]:
    path = tmp_path_factory.mktemp("grown") / "trace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACE", str(path))
        run = grown(count=3)
    yield run, [line.split() for line in path.read_text().splitlines()]


def test_loops_maps_and_conditions_run(grown_run: tuple[PipelineRunResponse, list[list[str]]]) -> None:
    run, _ = grown_run
    assert run.status == ExecutionStatus.COMPLETED
    done = statuses(run)
    assert set(done.values()) == {"completed"}
    # 0 + 1 + 4, then up to seven.
    assert len([name for name in done if name.startswith("alone")]) == 2


def test_isolated_steps_are_task_runs_and_inline_ones_in_the_pipelines(
    grown_run: tuple[PipelineRunResponse, list[list[str]]],
) -> None:
    run, _ = grown_run
    isolated = [name for name in statuses(run) if "square" in name or "alone" in name]
    flow_run = flow_run_of(run)
    tasks = task_runs(flow_run, ["grown", *isolated])
    assert flow_run.state is not None and flow_run.state.is_completed()
    assert all(task.state and task.state.is_completed() for task in tasks.values())
    assert all(task.tags == [str(run.id)] for task in tasks.values())


def test_each_isolated_step_has_a_process_and_inline_ones_share_the_callers(
    grown_run: tuple[PipelineRunResponse, list[list[str]]],
) -> None:
    _, noted = grown_run
    inline = {process for word, process in noted if word in ("numbers", "total")}
    isolated = [process for word, process in noted if word.startswith(("square", "alone"))]
    assert inline == {HERE}
    assert len(isolated) == 5 == len(set(isolated)) and HERE not in isolated


def test_hooks_fire_once_and_in_the_right_process(grown_run: tuple[PipelineRunResponse, list[list[str]]]) -> None:
    _, noted = grown_run
    isolated = {process for word, process in noted if word.startswith(("square", "alone"))}
    for hook in ("init", "cleanup"):
        # Once where the pipeline runs, around its inline steps; once in each process that is a step's own.
        assert sorted(process for word, process in noted if word == hook) == sorted([HERE, *isolated])
    here = [word for word, process in noted if process == HERE]
    assert here[0] == "init" and here.count("init") == 1 == here.count("cleanup")
    # A dynamic pipeline's own hooks are of the run, not of each step.
    assert [process for word, process in noted if word == "success"] == [HERE]
    assert not [word for word, _ in noted if word.startswith("failure")]


def test_an_isolated_steps_output_is_in_its_log(grown_run: tuple[PipelineRunResponse, list[list[str]]]) -> None:
    run, _ = grown_run
    collection = run.steps["alone"].log_collection or []
    [log] = [log for log in collection if log.source == "step"]
    entries = Client().active_stack.log_store.fetch(log, limit=1000).items
    assert [entry.message for entry in entries].count("said in its own process") == 1


@pipeline(dynamic=True, enable_cache=False, on_init=begin, on_cleanup=end)
def inner(count: int) -> None:
    numbers(count)


@pipeline(dynamic=True, enable_cache=False, on_init=begin, on_cleanup=end)
def outer() -> None:
    inner(1)
    numbers(2)
    inner(3)


def test_nested_pipelines_have_their_own_task_and_hooks(trace: Callable[[], list[list[str]]]) -> None:
    run = outer()
    assert run.status == ExecutionStatus.COMPLETED
    assert [word for word, _ in trace()] == [
        "init",
        *("init", "numbers", "cleanup"),
        "numbers",
        *("init", "numbers", "cleanup"),
        "cleanup",
    ]
    assert {process for _, process in trace()} == {HERE}
    flow_run = flow_run_of(run)
    assert sorted(_names(flow_run.id, 3)) == ["inner", "inner", "outer"]
    assert [str(child.status) for child in Client().list_pipeline_runs(pipeline="inner", size=5).items] == [
        "completed"
    ] * 2


def _names(flow_run_id: object, count: int) -> list[str]:
    """Names of a flow run's ended task runs, once there are so many; Prefect writes them a little later."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
        names = [task.name for task in found if task.state and task.state.is_final()]
        if len(names) >= count or time.monotonic() > deadline:
            return names
        time.sleep(0.05)


@step(runtime=StepRuntime.ISOLATED, retry=StepRetryConfig(max_retries=1, delay=0))
def second_time() -> None:
    if note("try") < 1:
        raise ValueError("not yet")


@step(runtime=StepRuntime.ISOLATED)
def bad() -> None:
    note("bad")
    raise ValueError("no such luck")


@step(runtime=StepRuntime.ISOLATED)
def dies() -> None:
    os._exit(3)


@pipeline(dynamic=True, enable_cache=False, on_init=begin, on_cleanup=end, on_failure=on_bad)
def unlucky(how: str) -> None:
    if how == "retried":
        second_time.submit().wait()
    elif how == "dies":
        dies()
    else:
        bad()


def test_a_retried_isolated_step_is_in_both_records(trace: Callable[[], list[list[str]]]) -> None:
    run = unlucky(how="retried")
    assert run.status == ExecutionStatus.COMPLETED
    assert [word for word, _ in trace()].count("try") == 2
    assert run.steps["second_time"].version == 2
    assert _names(flow_run_of(run).id, 3).count("second_time") == 2


@pytest.mark.parametrize(("how", "said"), [("bad", "no such luck"), ("dies", "exit code 3")])
def test_an_isolated_step_that_fails_fails_the_run(how: str, said: str, trace: Callable[[], list[list[str]]]) -> None:
    with pytest.raises(Exception, match=said):
        unlucky(how=how)
    run = last_run("unlucky")
    assert (str(run.status), statuses(run)) == ("failed", {how: "failed"})
    assert run.steps[how].exception_info is not None and said in (run.steps[how].exception_info.message or "")
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_failed()
    tasks = task_runs(flow_run, ["unlucky", how])
    assert all(task.state and task.state.is_failed() for task in tasks.values())
    here = [word for word, process in trace() if process == HERE]
    assert here.count("init") == 1 == here.count("cleanup")


def test_a_step_that_waits_for_room_is_ended_before_stop_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[ExecutionStatus] = []
    monkeypatch.setattr(isolated, "_publish", lambda _, status, *__: published.append(status))
    monkeypatch.setattr(isolated, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(isolated, "task_key", lambda *_: "key")
    config = cast(Any, SimpleNamespace(dask_scheduler=None, where="process", max_parallel=1))
    steps = isolated.IsolatedSteps(config, Active("id", "url", None), TaskPolicy())
    info = cast(Any, SimpleNamespace(step_run_id=uuid4(), pipeline_step_name="late", snapshot=None))
    assert steps._slots.acquire(timeout=0)
    steps.start(info, {})
    steps.stop(info.step_run_id)
    assert steps._steps[info.step_run_id].ended.is_set()
    assert steps.status(info.step_run_id) == ExecutionStatus.STOPPED == published[-1]


@step(runtime=StepRuntime.ISOLATED)
def sleeps() -> None:
    note("sleeps")
    time.sleep(400)


@step(runtime=StepRuntime.ISOLATED)
def fails_once_the_other_sleeps() -> None:
    while not note("look") < 0 and "sleeps" not in Path(os.environ["TRACE"]).read_text():
        time.sleep(0.1)
    raise ValueError("enough")


@pipeline(dynamic=True, enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def impatient() -> None:
    sleeps.submit()
    fails_once_the_other_sleeps.submit()


def test_fail_fast_ends_the_other_isolated_steps(trace: Callable[[], list[list[str]]]) -> None:
    start = time.monotonic()
    # ZenML raises what it sees first: the step's own error, or its word that the step failed.
    with pytest.raises(Exception, match=r"enough|fails_once_the_other_sleeps"):
        impatient()
    assert time.monotonic() - start < 300
    run = last_run("impatient")
    assert statuses(run) == {"sleeps": "stopped", "fails_once_the_other_sleeps": "failed"}
    assert run.status == ExecutionStatus.FAILED
