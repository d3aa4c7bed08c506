"""What a run tells a pool's jobs, what states and schedules mean: the plain parts of submitted runs."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun, WorkPool
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import RRuleSchedule as ServerRule
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Completed, Late, Paused, Retrying, Running, State, Suspended
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from zenml.config.resource_settings import ResourceSettings
from zenml.enums import ExecutionStatus
from zenml.models import ScheduleResponse
from zenml.orchestrators.exceptions import PipelineSubmissionError

from stacks.orchestrator import flow_run, orchestrator, outcome, schedules
from stacks.orchestrator.flavor import PrefectOrchestratorConfig
from stacks.orchestrator.outcome import status_of
from stacks.orchestrator.schedules import prefect_schedule
from stacks.orchestrator.submit import submission
from stacks.orchestrator.work_pool import Refused, find_pool, job_variables

LARGEST = [
    ResourceSettings(cpu_count=0.5, memory="2GiB"),
    ResourceSettings(cpu_count=2, memory="500MB"),
    ResourceSettings(gpu_count=1),
]

# Templates may name blocks, which only a server has; these do not.
NO_BLOCKS = cast(Any, SimpleNamespace())


def pool(kind: str, template: dict[str, Any]) -> WorkPool:
    return WorkPool(name="there", type=kind, base_job_template=template, default_queue_id=uuid4())


def test_a_process_pool_runs_in_the_folder_of_the_sources_and_has_no_limits(caplog: pytest.LogCaptureFixture) -> None:
    template = ProcessWorker.get_default_base_job_template()
    with caplog.at_level(logging.WARNING):
        variables = job_variables(pool("process", template), LARGEST, {"stream_output": False}, "/usr")
    assert variables == {"working_dir": "/usr", "stream_output": False}
    assert [record.args[0] for record in caplog.records if record.args] == ["CPU", "memory", "GPU"]  # type: ignore[index]
    made = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, variables, client=NO_BLOCKS))
    assert str(made.working_dir) == "/usr" and not made.stream_output


def test_kubernetes_jobs_ask_for_the_largest_of_the_steps(caplog: pytest.LogCaptureFixture) -> None:
    template = KubernetesWorker.get_default_base_job_template()
    variables = job_variables(pool("kubernetes", template), LARGEST[:2], {"image": "there/model:1"}, "/usr")
    made = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template, variables, client=NO_BLOCKS))
    container = made.job_manifest["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "there/model:1"
    expected = {"cpu": "2", "memory": "2048Mi"}
    assert container["resources"]["requests"] == container["resources"]["limits"] == expected
    assert not caplog.records


def test_docker_jobs_have_a_limit_of_memory_in_dockers_units() -> None:
    template = {"variables": {"properties": {"mem_limit": {"type": "string"}, "gpu_count": {"type": "integer"}}}}
    variables = job_variables(pool("docker", template), [*LARGEST[:1], ResourceSettings(gpu_count=2)], {}, "/usr")
    assert variables == {"mem_limit": "2048m", "gpu_count": 2}


def test_a_refusal_names_the_server_without_its_password() -> None:
    class Empty:
        api_url = "https://me:hunter2@prefect.example/api/"

        def read_work_pool(self, _: str) -> WorkPool:
            raise ObjectNotFound(Exception())

        def read_work_pools(self, limit: int) -> list[WorkPool]:
            return []

    with pytest.raises(Refused, match=r"^Prefect at https://prefect\.example/api has no work pool 'there'"):
        find_pool(cast(Any, Empty()), "there", None)


def test_a_server_that_goes_away_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stacks.orchestrator.submit.require_answer", lambda _: None)
    with (
        temporary_settings({PREFECT_API_URL: "https://me:hunter2@prefect.example/api"}),
        pytest.raises(PipelineSubmissionError, match=r"Prefect at https://prefect\.example/api does not answer"),
        submission(None),
    ):
        raise httpx.ConnectError("refused")


def test_an_unknown_variable_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Refused, match=r"no variable imgae.*image.*--base-job-template"):
        job_variables(pool("kubernetes", KubernetesWorker.get_default_base_job_template()), [], {"imgae": "x"}, None)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (None, "initializing"),
        (State(type=StateType.SCHEDULED), "initializing"),
        (Late(), "initializing"),
        (AwaitingRetry(), "retrying"),
        (State(type=StateType.PENDING), "initializing"),
        (State(type=StateType.RUNNING), "running"),
        (Retrying(), "running"),
        (Paused(), "paused"),
        (Suspended(), "paused"),
        (State(type=StateType.CANCELLING), "stopping"),
        (Cancelled(), "stopped"),
        (State(type=StateType.CRASHED), "failed"),
        (State(type=StateType.FAILED), "failed"),
        (State(type=StateType.COMPLETED), "completed"),
        (State(type=StateType.COMPLETED, name="Cached"), "cached"),
    ],
)
def test_every_state_is_a_status(state: State[Any] | None, status: str) -> None:
    assert status_of(state) == ExecutionStatus(status)


def zenml_schedule(**given: Any) -> ScheduleResponse:
    nothing = dict.fromkeys(("cron_expression", "start_time", "end_time", "interval_second", "run_once_start_time"))
    return cast(ScheduleResponse, SimpleNamespace(**nothing | {"catchup": False} | given))


NOW = datetime.now(UTC)  # of the collection: the tests may run an hour later
DAY = timedelta(days=1)


def test_cron_schedules_have_the_time_zone_of_the_setting() -> None:
    made = prefect_schedule(zenml_schedule(cron_expression="0 3 * * *"), "Europe/Berlin")
    assert made == CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin")


def test_an_interval_that_began_and_has_no_end_is_an_interval() -> None:
    begin = (NOW - DAY).replace(tzinfo=None)
    made = prefect_schedule(zenml_schedule(start_time=begin, interval_second=DAY), "UTC")
    assert isinstance(made, IntervalSchedule) and made.interval == DAY
    assert made.anchor_date == begin.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ({"start_time": NOW + DAY, "interval_second": DAY, "end_time": NOW + 3 * DAY}, [1, 2, 3]),
        ({"start_time": NOW + 2 * DAY, "interval_second": DAY}, [2, 3, 4, 5]),
        ({"run_once_start_time": NOW + 5 * DAY}, [5]),
    ],
)
def test_a_begin_an_end_and_a_single_time_are_rules(given: dict[str, Any], times: list[int]) -> None:
    made = prefect_schedule(zenml_schedule(**given), "UTC")
    assert isinstance(made, RRuleSchedule)
    found = asyncio.run(ServerRule(rrule=made.rrule, timezone=made.timezone).get_dates(n=4, start=NOW))
    assert found == [NOW.replace(microsecond=0) + number * DAY for number in times]


@pytest.mark.parametrize(
    ("given", "timezone", "said"),
    [
        ({"cron_expression": "0 3 * * *", "catchup": True}, "UTC", "catchup"),
        ({"cron_expression": "0 3 * * *", "end_time": NOW + DAY}, "UTC", "no end: leave"),
        ({"cron_expression": "0 3 * * *", "start_time": NOW + DAY}, "UTC", "begins at once"),
        ({"cron_expression": "every day"}, "UTC", "cron expression 'every day'"),
        ({"cron_expression": "0 3 * * *"}, "Berlin", "time zone 'Berlin'"),
    ],
)
def test_a_schedule_that_prefect_does_not_have_is_refused(given: dict[str, Any], timezone: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        prefect_schedule(zenml_schedule(**given), timezone)


def test_schedules_need_a_work_pool(caplog: pytest.LogCaptureFixture) -> None:
    assert PrefectOrchestratorConfig(work_pool="there").is_schedulable
    assert not PrefectOrchestratorConfig().is_schedulable
    assert "set the orchestrator's work_pool" in caplog.text
    assert PrefectOrchestratorConfig(work_pool="there").is_synchronous
    assert not PrefectOrchestratorConfig(work_pool="there", synchronous=False).is_synchronous


class Paged:
    """Prefect's client for one flow run whose task runs come three at a time."""

    def __init__(self, states: list[State[Any]]) -> None:
        self.flow_run = FlowRun(id=uuid4(), flow_id=uuid4(), state=Running())
        self.tasks = [TaskRun(id=uuid4(), task_key="t", dynamic_key="0", state=state) for state in states]
        self.ended: list[UUID] = []

    def read_flow_run(self, _: UUID) -> FlowRun:
        return self.flow_run

    def read_task_runs(self, flow_run_filter: object, sort: object, offset: int) -> list[TaskRun]:
        return self.tasks[offset : offset + 3]

    def set_task_run_state(self, task_id: UUID, state: State[Any], force: bool) -> None:
        self.ended.append(task_id)

    def set_flow_run_state(self, flow_run_id: UUID, state: State[Any], force: bool) -> None:
        self.ended.append(flow_run_id)


def test_all_task_runs_of_a_large_flow_run_are_read_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Paged([Running(), Completed(), Running(), Running(), Completed(), Running(), Running()])
    monkeypatch.setattr(flow_run, "prefect_client", lambda: nullcontext(client))
    _, tasks = flow_run.read_states(client.flow_run.id)
    assert tasks == client.tasks
    flow_run.mark_crashed(client.flow_run.id, "gone")
    open_ones = [task.id for task in client.tasks if task.state and task.state.is_running()]
    assert client.ended == [*open_ones, client.flow_run.id]


def test_all_open_steps_of_a_large_run_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [SimpleNamespace(id=uuid4(), status=ExecutionStatus.RUNNING) for _ in range(5)]
    stopped: list[UUID] = []

    def list_run_steps(pipeline_run_id: UUID, page: int = 1, **_: object) -> Any:
        return SimpleNamespace(items=steps[2 * page - 2 : 2 * page], index=page, total_pages=3, total=5)

    monkeypatch.setattr(outcome, "Client", lambda: SimpleNamespace(list_run_steps=list_run_steps))
    monkeypatch.setattr(
        outcome.publish_utils, "publish_step_run_status_update", lambda *given: stopped.append(given[0])
    )
    outcome._stop_open_steps(uuid4())
    assert stopped == [each.id for each in steps]


@pytest.mark.parametrize(
    ("begun", "beat", "every", "silent"),
    [
        (300, None, 180, False),  # it has begun lately
        (3_000, None, 180, False),  # it gives no signs at all
        (3_000, 500, 180, False),
        (3_000, 600, 180, True),
        (3_000, 600, 900, False),  # the user's own frequency
        (3_000, 2_900, 900, True),
    ],
)
def test_a_flow_run_is_silent_when_three_signs_are_missing(
    begun: int, beat: int | None, every: float, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state=Running(timestamp=now - timedelta(seconds=begun)))
    beats = [SimpleNamespace(occurred=now - timedelta(seconds=beat))] if beat else []
    client = cast(Any, SimpleNamespace(read_events=lambda *_, **__: SimpleNamespace(events=beats)))
    assert outcome.silent_since(client, run, every) == (beats[0].occurred if silent else None)
    marked: list[str] = []
    monkeypatch.setattr(orchestrator, "prefect_client", lambda: nullcontext(client))
    monkeypatch.setattr(orchestrator, "read_flow_run", lambda _: run)
    monkeypatch.setattr(orchestrator, "mark_crashed", lambda _, reason: marked.append(reason))
    orchestrator._mark_if_silent(run.id, every)
    assert [reason[:30] for reason in marked] == ["Its process gave no sign since"] * silent


def test_a_larger_heartbeat_frequency_of_the_user_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    @contextmanager
    def without_heartbeats() -> Iterator[None]:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield

    def look(_: object, every: float) -> None:
        asked.append(every)
        raise LookupError("seen")

    monkeypatch.setattr(orchestrator, "prefect_api", without_heartbeats)
    monkeypatch.setattr(orchestrator, "_bury_dead_runs", lambda: None)
    monkeypatch.setattr(orchestrator, "_mark_if_silent", look)
    run = cast(Any, SimpleNamespace(name="one", orchestrator_run_id=str(uuid4())))
    for frequency in (900, 30):
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: frequency}), pytest.raises(LookupError):
            orchestrator.PrefectOrchestrator.fetch_status(cast(Any, None), run)
    assert asked == [900, 180]


@pytest.mark.parametrize(
    ("before", "zone"),
    [
        (IntervalSchedule(interval=timedelta(hours=1)), "Europe/Berlin"),
        (RRuleSchedule(rrule="DTSTART:20300101T000000Z\nRRULE:FREQ=DAILY;COUNT=1"), "Europe/Berlin"),
        (CronSchedule(cron="0 1 * * *", timezone="Asia/Tokyo"), "Asia/Tokyo"),
    ],
)
def test_a_schedule_that_becomes_a_cron_expression_is_in_the_zone_of_the_settings(
    before: Any, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, made = uuid4(), []
    known = SimpleNamespace(id=uuid4(), slug="zenml", schedule=before)
    deployment = SimpleNamespace(id=uuid4(), schedules=[known], parameters={"snapshot_id": str(snapshot)})
    client = SimpleNamespace(update_deployment_schedule=lambda *_, schedule, **__: made.append(schedule))
    monkeypatch.setattr(schedules, "submission", lambda _: nullcontext())
    monkeypatch.setattr(schedules, "prefect_api", nullcontext)
    monkeypatch.setattr(schedules, "prefect_client", lambda: nullcontext(client))
    monkeypatch.setattr(schedules, "_deployment", lambda *_: deployment)
    update = cast(Any, SimpleNamespace(cron_expression="0 3 * * *", active=None))
    schedules.update_schedule(cast(Any, None), update, {snapshot: "Europe/Berlin"}.__getitem__)
    assert made == [CronSchedule(cron="0 3 * * *", timezone=zone)]
