"""ZenML schedules as schedules of Prefect deployments.

A cron expression is read in the time zone of the setting `timezone` (UTC when left out); intervals keep their start and
end; a run at one time only is a rule with one date. Each schedule has a deployment of its own, `<pipeline>/<schedule>`,
whose runs are ZenML runs of their own. `zenml pipeline schedule update|activate|deactivate|delete` follow there. Missed
times are not caught up with: a run that is late, because no worker was there, starts late; a deactivated schedule makes
no runs.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound
from zenml.orchestrators import SubmissionResult

from stacks.orchestrator.deployments import Wish, ensure_deployment, find_deployment
from stacks.orchestrator.flow_run import prefect_api, prefect_client
from stacks.orchestrator.submit import pool_variables, submission
from stacks.orchestrator.work_pool import Refused

if TYPE_CHECKING:
    from zenml.models import PipelineSnapshotResponse, ScheduleResponse, ScheduleUpdate

    from stacks.orchestrator.flavor import PrefectOrchestratorConfig, PrefectOrchestratorSettings

SLUG = "zenml"


def submit_schedule(
    config: "PrefectOrchestratorConfig",
    settings: "PrefectOrchestratorSettings",
    snapshot: "PipelineSnapshotResponse",
) -> SubmissionResult:
    """Make the deployment of a pipeline's new ZenML schedule.

    Returns:
        A result that names the deployment, for the schedule's metadata.

    Raises:
        PipelineSubmissionError: Prefect did not take it, or cannot do what it says.
    """
    schedule = snapshot.schedule
    assert schedule is not None
    with submission(None):
        if config.work_pool is None:
            raise Refused("schedules need a work pool, whose worker starts the runs: set the orchestrator's work_pool")
        when = prefect_schedule(schedule, settings.timezone)
        with prefect_api(), prefect_client() as client:
            wish = Wish(
                snapshot.pipeline_configuration.name,
                schedule.name,
                config.work_pool,
                config.work_queue,
                {"snapshot_id": str(snapshot.id)},
                pool_variables(client, config, settings, snapshot),
                (_tag(schedule.id), *settings.tags),
            )
            if find_deployment(client, wish.full_name):
                raise Refused(f"Prefect has a deployment '{wish.full_name}' already: give the schedule another name")
            ensure_deployment(client, wish, [DeploymentScheduleCreate(schedule=when, slug=SLUG)])
    return SubmissionResult(metadata={"prefect_deployment": wish.full_name})


def prefect_schedule(schedule: "ScheduleResponse", timezone: str) -> SCHEDULE_TYPES:
    """What a ZenML schedule is in Prefect.

    Raises:
        Refused: Prefect has no such schedule.
    """
    if schedule.catchup:
        raise Refused("Prefect does not make up for missed times: leave the schedule's catchup out")
    start, end = _utc(schedule.start_time), _utc(schedule.end_time)
    if schedule.cron_expression:
        if end or (start and start > datetime.now(UTC)):
            raise Refused(
                "a cron schedule of Prefect begins at once and has no end: leave start_time and end_time out, or give "
                "start_time with interval_second instead of the cron expression"
            )
        return _cron(schedule.cron_expression, timezone)
    if schedule.run_once_start_time:
        return RRuleSchedule(rrule=f"DTSTART:{_stamp(schedule.run_once_start_time)}\nRRULE:FREQ=DAILY;COUNT=1")
    assert start is not None and schedule.interval_second is not None
    if end is None and start <= datetime.now(UTC):
        return IntervalSchedule(interval=schedule.interval_second, anchor_date=start)
    seconds = max(1, int(schedule.interval_second.total_seconds()))
    until = f";UNTIL={_stamp(end)}" if end else ""
    return RRuleSchedule(rrule=f"DTSTART:{_stamp(start)}\nRRULE:FREQ=SECONDLY;INTERVAL={seconds}{until}")


def update_schedule(schedule: "ScheduleResponse", update: "ScheduleUpdate", timezone_of: Callable[[UUID], str]) -> None:
    """Have Prefect follow a changed cron expression, an activation or a deactivation.

    Args:
        schedule: As ZenML has it.
        update: What is to be another.
        timezone_of: The setting of a snapshot, for a schedule that had no time zone before.

    Raises:
        PipelineSubmissionError: Prefect has no such schedule, or refuses the expression.
    """
    with submission(None), prefect_api(), prefect_client() as client:
        deployment = _deployment(client, schedule)
        known = next((each for each in deployment.schedules if each.slug == SLUG), None)
        if known is None:
            raise Refused(
                f"deployment '{deployment.name}' has no schedule '{SLUG}' any more: somebody removed it in Prefect; "
                f"`zenml pipeline schedule delete {schedule.name}`, then make it anew"
            )
        before = known.schedule
        when = None
        if update.cron_expression:
            known_zone = before.timezone if isinstance(before, CronSchedule) else None
            timezone = known_zone or timezone_of(UUID(deployment.parameters["snapshot_id"]))
            when = _cron(update.cron_expression, timezone)
        client.update_deployment_schedule(deployment.id, known.id, active=update.active, schedule=when)


def delete_schedule(schedule: "ScheduleResponse") -> None:
    """Delete the deployment of a schedule, and with it the runs that are planned; one that is gone is none to delete.

    Raises:
        PipelineSubmissionError: Prefect does not answer.
    """
    with submission(None), prefect_api(), prefect_client() as client:
        for deployment in _deployments(client, schedule.id):
            try:
                client.delete_deployment(deployment.id)
            except ObjectNotFound:
                continue


def _deployment(client: SyncPrefectClient, schedule: "ScheduleResponse") -> DeploymentResponse:
    found = _deployments(client, schedule.id)
    if not found:
        raise Refused(
            f"Prefect has no deployment of schedule '{schedule.name}': it was deleted there; "
            f"`zenml pipeline schedule delete {schedule.name}`, then make it anew"
        )
    return found[0]


def _deployments(client: SyncPrefectClient, schedule_id: UUID) -> list[DeploymentResponse]:
    return client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[_tag(schedule_id)]))
    )


def _tag(schedule_id: UUID) -> str:
    return f"zenml-schedule:{schedule_id}"


def _cron(expression: str, timezone: str) -> CronSchedule:
    try:
        return CronSchedule(cron=expression, timezone=timezone)
    except ValueError as error:
        reason = "; ".join(line["msg"] for line in getattr(error, "errors", list)()) or str(error)
        raise Refused(f"cron expression '{expression[:100]}' in time zone '{timezone[:100]}': {reason[:300]}") from None


def _utc(time: datetime | None) -> datetime | None:
    """ZenML's database keeps times in UTC and forgets that they are."""
    return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


def _stamp(time: datetime) -> str:
    return f"{(_utc(time) or time).astimezone(UTC):%Y%m%dT%H%M%SZ}"
