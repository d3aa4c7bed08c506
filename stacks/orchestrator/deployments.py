"""Deployments: how Prefect's workers know of a ZenML pipeline.

Runs of a pipeline on a pool share one deployment, `<pipeline>/zenml-<pool>`; each of its ZenML schedules has one of its
own, `<pipeline>/<schedule>`, so that schedules cannot overwrite each other's job variables. Both are made on demand,
found by name, updated only when they differ, and start the same flow (`worker.zenml_run`), which is told ids only.
"""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from stacks.orchestrator.flow_run import flow_name
from stacks.orchestrator.work_pool import Refused

ENTRYPOINT = "stacks.orchestrator.worker.zenml_run"
PARAMETERS = {
    "type": "object",
    "properties": {
        "snapshot_id": {"type": "string", "format": "uuid", "title": "snapshot_id", "position": 0},
        "run_id": {"type": ["string", "null"], "format": "uuid", "title": "run_id", "position": 1, "default": None},
    },
    "required": ["snapshot_id"],
}


@dataclass(frozen=True)
class Wish:
    """What a deployment should be.

    Attributes:
        pipeline: Name of the ZenML pipeline; the flow's name, but for characters that Prefect refuses.
        name: Name of the deployment.
        pool: Its work pool.
        queue: Its queue, the pool's default one when None.
        parameters: Ids that its runs get when they are given none.
        job_variables: What its runs tell the job when they say nothing else.
        tags: Of the deployment and so of its runs.
    """

    pipeline: str
    name: str
    pool: str
    queue: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    job_variables: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As `prefect deployment inspect` wants it."""
        return f"{flow_name(self.pipeline)}/{self.name}"


def pool_deployment(pool: str, queue: str | None) -> str:
    """Name of the deployment that runs of a pipeline share."""
    return f"zenml-{pool}-{queue}" if queue else f"zenml-{pool}"


def find_deployment(client: SyncPrefectClient, full_name: str) -> DeploymentResponse | None:
    """The deployment of a name, if there is one."""
    try:
        return client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        return None


def ensure_deployment(
    client: SyncPrefectClient, wish: Wish, schedules: list[DeploymentScheduleCreate] | None = None
) -> UUID:
    """Find the deployment, make it, or make it what it should be; returns its id.

    Raises:
        Refused: A deployment of that name starts something else.
    """
    known = find_deployment(client, wish.full_name)
    if known is None:
        return client.create_deployment(
            flow_id=client.create_flow_from_name(flow_name(wish.pipeline)),
            name=wish.name,
            entrypoint=ENTRYPOINT,
            description=f"Runs of the ZenML pipeline {wish.pipeline}.",
            work_pool_name=wish.pool,
            work_queue_name=wish.queue,
            parameters=wish.parameters,
            job_variables=wish.job_variables,
            parameter_openapi_schema=PARAMETERS,
            enforce_parameter_schema=True,
            schedules=schedules or [],
            tags=[*wish.tags],
        )
    if known.entrypoint != ENTRYPOINT:
        raise Refused(
            f"deployment '{wish.full_name}' starts {known.entrypoint}, not ZenML runs: "
            f"rename it, or the schedule or pool whose runs would need that name"
        )
    if changes := _changes(known, wish):
        client.update_deployment(known.id, DeploymentUpdate(**changes))
    return known.id


def _changes(known: DeploymentResponse, wish: Wish) -> dict[str, Any]:
    wanted = {
        "work_pool_name": wish.pool,
        "parameters": wish.parameters,
        "job_variables": wish.job_variables,
        "tags": [*wish.tags],
        **({"work_queue_name": wish.queue} if wish.queue else {}),
    }
    return {name: value for name, value in wanted.items() if getattr(known, name) != value}
