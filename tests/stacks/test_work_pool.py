"""What a run tells a pool's jobs, what states and schedules mean: the plain parts of submitted runs."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType, WorkPool
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.server.schemas.schedules import RRuleSchedule as ServerRule
from prefect.states import AwaitingRetry, Cancelled, Late, Paused, Retrying, State, Suspended
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from zenml.config.resource_settings import ResourceSettings
from zenml.enums import ExecutionStatus
from zenml.models import ScheduleResponse

from stacks.orchestrator.flavor import PrefectOrchestratorConfig
from stacks.orchestrator.outcome import status_of
from stacks.orchestrator.schedules import prefect_schedule
from stacks.orchestrator.work_pool import Refused, job_variables

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
