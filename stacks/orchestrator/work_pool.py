"""The work pool of the component: whether runs may go there, and what its jobs may be told.

A pool's base job template says which variables its jobs have. `ResourceSettings` of steps become those that stand for
CPU, memory and GPUs (a Kubernetes pool has `cpu_request`, `cpu_limit`, `memory_request`, `memory_limit`, a Docker pool
`mem_limit`; add others to your template); what a pool has no variable for is said, not dropped silently. On a pool of
type `process` the run's folder is where ZenML looks for sources, so that a script's own modules are found.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound
from zenml.config.resource_settings import ByteUnit

from stacks.orchestrator.server import without_credentials

if TYPE_CHECKING:
    from zenml.config.resource_settings import ResourceSettings

logger = logging.getLogger(__name__)

SHOWN = 10
CPU = ("cpu", "cpus", "cpu_count", "cpu_request", "cpu_limit")
MEMORY = ("memory", "mem_limit", "memory_request", "memory_limit")
GPU = ("gpu", "gpus", "gpu_count", "gpu_request", "gpu_limit")


class Refused(ValueError):
    """A run or schedule cannot go to the pool; the text says why, what there is, and what to do."""


def find_pool(client: SyncPrefectClient, name: str, queue: str | None) -> WorkPool:
    """The work pool, made sure that it and its queue exist.

    Raises:
        Refused: There is no such pool or queue.
    """
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        known = [each.name for each in client.read_work_pools(limit=SHOWN)]
        address = without_credentials(str(client.api_url))
        raise Refused(
            f"Prefect at {address} has no work pool '{name}' ({listed('it has', known)}): "
            f"`prefect work-pool create {name} --type process` makes one, `prefect worker start -p {name}` serves it"
        ) from None
    if queue and queue not in (known := [each.name for each in client.read_work_queues(work_pool_name=name)]):
        raise Refused(
            f"work pool '{name}' has no queue '{queue}' ({listed('it has', known)}): "
            f"`prefect work-queue create {queue} --pool {name}` makes one"
        )
    if pool.is_paused:
        logger.warning("Work pool '%s' is paused: `prefect work-pool resume %s` lets its runs start.", name, name)
    return pool


def listed(head: str, names: Iterable[str]) -> str:
    """Names for a message, at most ten of them."""
    found = sorted(names)
    more = ", ..." if len(found) > SHOWN else ""
    return f"{head} {', '.join(found[:SHOWN])}{more}" if found else f"{head} none"


def job_variables(
    pool: WorkPool, resources: Iterable["ResourceSettings"], given: Mapping[str, Any], folder: str | None
) -> dict[str, Any]:
    """What a run tells the pool's job, over the pool's own defaults.

    Args:
        pool: The work pool.
        resources: What the steps that run in the job ask for; the largest of each counts.
        given: Variables that the pipeline's settings name; they come last.
        folder: Where the sources of the steps are, on this machine.

    Raises:
        Refused: The pool's jobs have no variable of a given name.
    """
    known = pool.base_job_template.get("variables", {}).get("properties", {})
    if unknown := sorted(set(given) - set(known)):
        raise Refused(
            f"jobs of work pool '{pool.name}' (type {pool.type}) have no variable {', '.join(unknown)[:200]} "
            f"({listed('they have', known)}): take it out of the orchestrator's job_variables, or add it to the pool's "
            f"base job template (`prefect work-pool update {pool.name} --base-job-template FILE`)"
        )
    own = {"working_dir": folder} if pool.type == "process" and folder and "working_dir" in known else {}
    return {**own, **_resource_variables(pool, known, [*resources]), **given}


def _resource_variables(
    pool: WorkPool, known: Mapping[str, Any], resources: list["ResourceSettings"]
) -> dict[str, Any]:
    cpu = max((each.cpu_count for each in resources if each.cpu_count), default=None)
    gpu = max((each.gpu_count for each in resources if each.gpu_count), default=None)
    memory = max((each.get_memory(ByteUnit.MIB) or 0 for each in resources), default=0)
    wanted = {
        "CPU": (CPU, f"{cpu:g}" if cpu else None),
        "memory": (MEMORY, f"{-(-memory // 1):.0f}{'m' if pool.type == 'docker' else 'Mi'}" if memory else None),
        "GPU": (GPU, str(gpu) if gpu else None),
    }
    found: dict[str, Any] = {}
    for kind, (names, value) in wanted.items():
        if value is None:
            continue
        fitting = [name for name in names if name in known]
        if not fitting:
            logger.warning(
                "Steps ask for %s %s, which jobs of work pool '%s' (type %s) have no variable for: it is not asked "
                "for. Add one of %s to the pool's base job template, or set the orchestrator's job_variables.",
                kind,
                value,
                pool.name,
                pool.type,
                ", ".join(names),
            )
        found |= {name: _typed(value, known[name]) for name in fitting}
    return found


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    """A value as the template's variable takes it: text, unless its schema knows numbers only."""
    kinds = {schema.get("type"), *(each.get("type") for each in schema.get("anyOf", ()))}
    if "string" not in kinds and kinds & {"integer", "number"} and value.replace(".", "", 1).isdigit():
        return float(value) if "." in value else int(value)
    return value
