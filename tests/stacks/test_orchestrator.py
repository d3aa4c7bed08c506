"""The flavor on the real engines: ZenML's record, Prefect's record, and what the caller sees, for each way to end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from zenml import get_step_context, pipeline, step
from zenml.client import Client
from zenml.config.retry_config import StepRetryConfig
from zenml.config.schedule import Schedule
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.execution.pipeline.utils import submit_pipeline
from zenml.models import PipelineRunResponse
from zenml.orchestrators import signal_handler
from zenml.pipelines.run_utils import create_placeholder_run

from stacks.orchestrator.flavor import PrefectOrchestratorSettings
from stacks.orchestrator.flow_run import StepStates, TaskPolicy, current_flow_run_id, in_flow_run, prefect_api
from stacks.orchestrator.orchestrator import delays
from stacks.stack_file import ensure_active
from tests.stacks.pipelines import flow_run_of, last_run, statuses, task_runs


@pytest.fixture(scope="module", autouse=True)
def _local_stack(home: Path) -> Iterator[None]:
    ensure_active()
    Client().activate_stack("local")
    with prefect_api():
        yield


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What the steps noted, in order."""
    path = tmp_path / "trace"
    monkeypatch.setenv("TRACE", str(path))
    return lambda: path.read_text().split() if path.exists() else []


def note(word: str) -> int:
    """Note a word and say how often it was noted before."""
    path = Path(os.environ["TRACE"])
    before = path.read_text().split().count(word) if path.exists() else 0
    with path.open("a") as file:
        file.write(f"{word}\n")
    return before


@step
def source() -> int:
    note("source")
    return 1


@step
def left(value: int) -> int:
    note("left")
    return value + 1


@step
def right(value: int) -> int:
    note("right")
    return value + 2


@step
def join(first: int, second: int) -> int:
    note("join")
    return first * second


@pipeline(enable_cache=False)
def diamond() -> None:
    value = source()
    join(left(value), right(value))


def test_a_run_is_a_flow_run_and_a_step_is_a_task_run(trace: Callable[[], list[str]]) -> None:
    run = diamond()
    assert trace()[0] == "source" and trace()[-1] == "join" and len(trace()) == 4
    assert run.status == ExecutionStatus.COMPLETED
    assert run.steps["join"].output.load() == 6
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_completed()
    assert flow_run.name == run.name
    tasks = task_runs(flow_run, ["source", "left", "right", "join"])
    assert all(task.state and task.state.is_completed() and task.run_count == 1 for task in tasks.values())
    waited = {task.id for task in tasks["join"].task_inputs["wait_for"]}  # type: ignore[union-attr]
    assert waited == {tasks["left"].id, tasks["right"].id}


def test_links_lead_both_ways(trace: Callable[[], list[str]]) -> None:
    run = diamond()
    flow_run = flow_run_of(run)
    assert run.orchestrator_run_id == str(flow_run.id)
    assert str(run.run_metadata["orchestrator_url"]).endswith(f"/runs/flow-run/{flow_run.id}")
    assert str(run.run_metadata["orchestrator_run_id"]) == str(flow_run.id)
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[str(run.id)])))
    assert [other.id for other in found] == [flow_run.id]
    tasks = task_runs(flow_run, ["source", "left", "right", "join"])
    assert all(task.tags == [str(run.id)] for task in tasks.values())


def test_settings_add_tags(trace: Callable[[], list[str]]) -> None:
    run = diamond.with_options(settings={"orchestrator": PrefectOrchestratorSettings(tags=("nightly",))})()
    flow_run = flow_run_of(run)
    assert set(flow_run.tags) == {"nightly", str(run.id)}
    assert set(task_runs(flow_run, ["source", "left", "right", "join"])["join"].tags) == {"nightly", str(run.id)}


@step
def bad() -> int:
    note("bad")
    raise ValueError("no such luck")


@step
def after_bad(value: int) -> None:
    note("after_bad")


@step
def late() -> None:
    note("late")


@pipeline(enable_cache=False)
def unlucky() -> None:
    # ZenML sorts steps that wait for nothing by name: bad, late.
    after_bad(bad())
    late()


@pytest.mark.parametrize(
    ("mode", "ran", "raised"),
    [
        (ExecutionMode.FAIL_FAST, ["bad"], ValueError),
        (ExecutionMode.STOP_ON_FAILURE, ["bad"], RuntimeError),
        (ExecutionMode.CONTINUE_ON_FAILURE, ["bad", "late"], RuntimeError),
    ],
)
def test_execution_modes(
    mode: ExecutionMode, ran: list[str], raised: type[Exception], trace: Callable[[], list[str]]
) -> None:
    with pytest.raises(raised, match="no such luck") as error:
        unlucky.with_options(execution_mode=mode)()
    assert raised is ValueError or isinstance(error.value.__cause__, ValueError)
    assert trace() == ran
    run = last_run("unlucky")
    assert run.status == ExecutionStatus.FAILED
    assert statuses(run)["bad"] == "failed"
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_failed()
    assert "no such luck" in (flow_run.state.message or "")
    tasks = task_runs(flow_run, ran)
    assert tasks["bad"].state is not None and tasks["bad"].state.is_failed()
    assert "no such luck" in (tasks["bad"].state.message or "")


@step(retry=StepRetryConfig(max_retries=2, delay=0))
def third_time() -> None:
    if note("try") < 2:
        raise ValueError("not yet")


@pipeline(enable_cache=False)
def persistent() -> None:
    third_time()


def test_retries_are_in_both_records(trace: Callable[[], list[str]]) -> None:
    run = persistent()
    assert trace() == ["try"] * 3
    assert run.status == ExecutionStatus.COMPLETED
    assert run.steps["third_time"].version == 3
    task = task_runs(flow_run_of(run), ["third_time"])["third_time"]
    assert task.run_count == 3


class Stopping(threading.Event):
    """Is set once somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seen += [_shown(), timeout]
        self.set()
        return super().wait(timeout)


def _shown() -> str | None:
    """The name of the current task run's state."""
    context = TaskRunContext.get()
    assert context is not None and context.task_run.state is not None
    return context.task_run.state.name


def test_a_step_waits_for_its_retry_until_the_run_is_stopped() -> None:
    stopping = Stopping()

    def tries() -> None:
        stopping.seen.append(_shown())
        if len(stopping.seen) == 1:
            raise ValueError("not yet")

    policy = TaskPolicy(delays=(600.0,), stopping=stopping)
    in_flow_run(lambda: StepStates().run("late", "late", (), tries, policy), "late", "late", (), None)
    assert stopping.seen == ["Running", "AwaitingRetry", 600.0, "Retrying"]


def test_each_retry_waits_longer_by_the_backoff() -> None:
    def of(retry: StepRetryConfig | None) -> list[float]:
        return delays(cast(Any, SimpleNamespace(config=SimpleNamespace(retry=retry))))

    assert of(StepRetryConfig(max_retries=3, delay=2, backoff=2)) == [2, 4, 8]
    assert of(StepRetryConfig(max_retries=2, delay=5, backoff=1)) == [5, 5]
    # As in ZenML, whose backoff is 0 when left out.
    assert of(StepRetryConfig(max_retries=2, delay=5)) == [5, 0]
    assert of(None) == []


@step(retry=StepRetryConfig(max_retries=1, delay=0))
def never() -> None:
    note("try")
    raise ValueError("never")


@pipeline(enable_cache=False)
def hopeless() -> None:
    never()


def test_retries_end(trace: Callable[[], list[str]]) -> None:
    with pytest.raises(RuntimeError, match="never"):
        hopeless()
    assert trace() == ["try"] * 2
    run = last_run("hopeless")
    assert (str(run.status), statuses(run)["never"]) == ("failed", "failed")
    assert task_runs(flow_run_of(run), ["never"])["never"].run_count == 2


@pipeline(enable_cache=True)
def remembered() -> None:
    value = source()
    left(value)


def test_cached_steps_have_task_runs_that_say_so(trace: Callable[[], list[str]]) -> None:
    first = remembered.with_options(settings={})()
    executed = trace()
    second = remembered()
    assert trace() == executed
    assert statuses(second) == {"source": "cached", "left": "cached"}
    assert second.steps["left"].output.id == first.steps["left"].output.id
    tasks = task_runs(flow_run_of(second), ["source", "left"])
    assert {task.state.name for task in tasks.values() if task.state} == {"Cached"}


def on_bad(error: BaseException) -> None:
    note(f"failure:{type(error).__name__}")


def on_good() -> None:
    note(f"success:{get_step_context().step_run.name}")


def begin(word: str) -> str:
    note("init")
    return word


def end() -> None:
    note("cleanup")


@step
def asks() -> None:
    note(f"state:{get_step_context().pipeline_state}")


@pipeline(
    enable_cache=False,
    on_failure=on_bad,
    on_success=on_good,
    on_init=begin,
    on_init_kwargs={"word": "hello"},
    on_cleanup=end,
)
def hooked(fail: bool) -> None:
    asks()
    if fail:
        bad(after=["asks"])


def test_hooks(trace: Callable[[], list[str]]) -> None:
    hooked(fail=False)
    assert trace() == ["init", "state:hello", "success:asks", "cleanup"]


def test_hooks_of_a_failure(trace: Callable[[], list[str]]) -> None:
    with pytest.raises(RuntimeError):
        hooked(fail=True)
    assert trace() == ["init", "state:hello", "success:asks", "bad", "failure:ValueError", "cleanup"]


def broken_begin() -> None:
    raise ValueError("no beginning")


@pipeline(enable_cache=False, on_init=broken_begin)
def stillborn() -> None:
    late()


def test_failing_init_hook_fails_both_records_and_keeps_the_link(trace: Callable[[], list[str]]) -> None:
    with pytest.raises(Exception, match="init hook"):
        stillborn()
    run = last_run("stillborn")
    assert run.status == ExecutionStatus.FAILED and trace() == []
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_failed()
    assert str(flow_run.id) in str(run.run_metadata["orchestrator_url"])


def test_inside_a_flow_run_the_steps_join_it(trace: Callable[[], list[str]]) -> None:
    runs: list[PipelineRunResponse] = []

    @flow
    def outer() -> UUID | None:
        runs.append(diamond())
        runs.append(persistent())
        return current_flow_run_id()

    flow_run_id = outer()
    assert [run.orchestrator_run_id for run in runs] == [str(flow_run_id)] * 2
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        subflows = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[str(runs[0].id)])))
    assert [other.id for other in subflows] == [flow_run_id]
    assert {str(run.id) for run in runs} <= set(flow_run.tags)
    tasks = task_runs(flow_run, ["source", "left", "right", "join", "third_time"])
    assert tasks["third_time"].tags == [str(runs[1].id)]


def test_the_same_snapshot_twice_in_a_flow_run_keeps_its_runs_apart(trace: Callable[[], list[str]]) -> None:
    snapshot_id = diamond().snapshot.id
    client = Client()
    ids: list[str] = []

    @flow
    def outer() -> None:
        for _ in range(2):
            snapshot = client.get_snapshot(snapshot_id)
            run = create_placeholder_run(snapshot)
            submit_pipeline(snapshot, client.active_stack, run)
            again = client.get_pipeline_run(run.id)
            assert again.status == ExecutionStatus.COMPLETED
            ids.append(again.orchestrator_run_id)
            assert str(flow_run_of(again).id) == str(current_flow_run_id())

    outer()
    assert len(set(ids)) == 2 and ids[1].startswith(ids[0])


def test_failure_in_an_outer_flow_reaches_its_record(trace: Callable[[], list[str]]) -> None:
    @flow
    def outer() -> None:
        unlucky()

    with pytest.raises(RuntimeError, match="no such luck"):
        outer()
    flow_run = flow_run_of(last_run("unlucky"))
    assert flow_run.flow_id and flow_run.state is not None and flow_run.state.is_failed()


def test_the_run_id_is_gone_after_the_run(trace: Callable[[], list[str]]) -> None:
    orchestrator = Client().active_stack.orchestrator
    diamond()
    with pytest.raises(RuntimeError, match="no pipeline is running"):
        orchestrator.get_orchestrator_run_id()
    with pytest.raises(RuntimeError, match="no such luck"):
        unlucky()
    with pytest.raises(RuntimeError, match="no pipeline is running"):
        orchestrator.get_orchestrator_run_id()


@step
def knows_its_run() -> None:
    orchestrator = Client().active_stack.orchestrator
    note(orchestrator.get_orchestrator_run_id())
    note(str(PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()))


@pipeline(enable_cache=False)
def knowing() -> None:
    knows_its_run(id="one")
    knows_its_run(id="two", after=["one"])


def test_trap_flow_heartbeats_are_off_and_the_run_id_is_one(trace: Callable[[], list[str]]) -> None:
    run = knowing()
    assert trace() == [run.orchestrator_run_id, "None"] * 2


def test_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="does not support scheduling"):
        diamond.with_options(schedule=Schedule(name="no", cron_expression="0 3 * * *"))()
    assert Client().list_schedules(name="no").total == 0


@step
def interrupted() -> None:
    raise KeyboardInterrupt


@step(retry=StepRetryConfig(max_retries=3, delay=0))
def interrupted_with_retries() -> None:
    note("try")
    raise KeyboardInterrupt


@pipeline(enable_cache=False)
def impatient(retries: bool) -> None:
    if retries:
        interrupted_with_retries(id="step")
    else:
        interrupted(id="step")


@pytest.mark.parametrize("retries", [False, True])
def test_an_interrupt_ends_both_records(retries: bool, trace: Callable[[], list[str]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        impatient(retries)
    assert len(trace()) == int(retries)
    run = last_run("impatient")
    assert run.status in (ExecutionStatus.FAILED, ExecutionStatus.STOPPED)
    assert not run.in_progress
    assert statuses(run)["step"] in ("failed", "stopped")
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_crashed()
    task = task_runs(flow_run, ["step"])["step"]
    assert task.state is not None and task.state.is_crashed()


@step
def add(first: int, second: int) -> int:
    note("add")
    return first + second


@pipeline(dynamic=True, enable_cache=False)
def grown(fail: bool) -> None:
    one, two = source.submit(), source.submit()
    total = add(one.load(), two.load())
    if total.load() == 2:
        add(total, 1)
    if fail:
        bad()


def test_dynamic_pipelines(trace: Callable[[], list[str]]) -> None:
    run = grown(fail=False)
    assert run.status == ExecutionStatus.COMPLETED
    flow_run = flow_run_of(run)
    assert str(flow_run.id) in str(run.run_metadata["orchestrator_url"])
    assert flow_run.state is not None and flow_run.state.is_completed()
    assert set(statuses(run)) == {"source", "source_2", "add", "add_2"}
    # Inline steps run in the task of the pipeline (isolated ones: test_dynamic.py).
    task_runs(flow_run, ["grown"])


def test_dynamic_pipeline_that_fails(trace: Callable[[], list[str]]) -> None:
    with pytest.raises(ValueError, match="no such luck"):
        grown(fail=True)
    run = last_run("grown")
    assert run.status == ExecutionStatus.FAILED
    flow_run = flow_run_of(run)
    assert flow_run.state is not None and flow_run.state.is_failed()


def test_fetch_status(trace: Callable[[], list[str]]) -> None:
    orchestrator: Any = Client().active_stack.orchestrator
    with pytest.raises(RuntimeError):
        unlucky.with_options(execution_mode=ExecutionMode.CONTINUE_ON_FAILURE)()
    run = last_run("unlucky")
    task_runs(flow_run_of(run), ["bad", "late"])
    status, steps = orchestrator.fetch_status(run, include_steps=True)
    assert status is None, "a finished run is as ZenML has it"
    assert steps == {"bad": ExecutionStatus.FAILED, "late": ExecutionStatus.COMPLETED}
    unfinished = run.model_copy(deep=True)
    unfinished.body.status = ExecutionStatus.RUNNING  # type: ignore[union-attr]
    assert orchestrator.fetch_status(unfinished) == (ExecutionStatus.FAILED, None)


@step(enable_cache=False)
def swallows_an_interrupt() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        note("swallowed")


@step(enable_cache=False)
def never_reached() -> None:
    note("reached")


@pipeline(name="swallowing", execution_mode=ExecutionMode.FAIL_FAST)
def swallowing() -> None:
    swallows_an_interrupt()
    never_reached(after="swallows_an_interrupt")


def test_an_interrupt_that_a_step_loses_still_ends_the_run(trace: Callable[[], list[str]]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        swallowing()
    assert trace() == ["swallowed"]
    assert signal.getsignal(signal.SIGINT) is before
    run = last_run("swallowing")
    assert run.status.is_finished and not run.status.is_successful
    state = flow_run_of(run).state
    assert state is not None and state.is_final() and not state.is_completed()


def test_ctrl_c_while_zenml_puts_its_handler_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def and_then_the_signal(number: int, handler: Any) -> Any:
        previous = signal.signal(number, handler)
        if number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGINT)
        return previous

    in_place = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(signal_handler, "signal", SimpleNamespace(signal=and_then_the_signal))
    try:
        with pytest.raises(KeyboardInterrupt):
            swallowing()
    finally:
        signal.signal(signal.SIGINT, in_place)
    state = flow_run_of(last_run("swallowing")).state
    assert state is not None and state.is_crashed()
