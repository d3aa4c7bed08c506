"""Acting on a decision of the loop: the training is started, or the champion before takes over again."""

import logging
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flows.retire import repair_first
from flows.run import own_error
from flows.train import train
from models.config import ModelConfig
from models.errors import GauntletError, WorkError, bounded
from stacks import registry
from stacks.logs import masked
from steps.caching import parse_config
from steps.promote import rollback
from steps.respond import LOOP, note_failure
from steps.response import Response
from steps.trainings import reference

LOG = logging.getLogger(__name__)


def act(config: str, response: Response) -> dict[str, Any]:
    """Do what was decided; called inside a flow run, after everybody was told of the decision.

    Args:
        config: The model's configuration, a `steps.caching.parameter`.
        response: The decision, as the step `respond` recorded it.

    Returns:
        `model` and `decision`; of a training also `started` (`deployment` or `in process`), `flow_run`, and in process
        `version`, `verdict`, `reason` and `champion`; of a rollback `champion`, `former` and `sequence`.

    Raises:
        WorkError: The training could not be started, or failed here, which the ledger says then; or the rollback was
            refused, and the champion is as before.
    """
    done: dict[str, Any] = {"model": response.model, "decision": response.decision}
    if response.decision == "retrain":
        return done | _retrained(parse_config(config), response)
    if response.decision == "rollback":
        return done | _rolled_back(response)
    return done


def _retrained(config: ModelConfig, response: Response) -> dict[str, Any]:
    """Start the training where a worker waits for it, else do it here."""
    source, why = config.monitoring.retrain.source, _why(response)
    try:
        with get_client(sync_client=True) as client:
            deployed = _is_served(client, f"train/{config.name}")
        if not deployed:
            return _trained_here(config, source, why)
        given = {"model": config.name, "source": source, "why": why, "actor": LOOP}
        # No subflow: such a run may not suspend for a person. The key starts one run however often this is called.
        run: Any = run_deployment(
            f"train/{config.name}",
            parameters=given,
            timeout=0,
            as_subflow=False,
            idempotency_key=f"{config.name}-monitor-entry-{response.sequence}",
        )
    except Exception as error:
        said = masked(str(error)) if isinstance(error, GauntletError) else type(error).__name__
        note_failure(response, bounded(said, 500))
        named = reference(response.sequence or 0)
        raise WorkError(f"the training of '{config.name}' {named} failed: {said}") from error
    LOG.info("%s: the deployment train/%s was started: flow run %s", config.name, config.name, run.id)
    return {"started": "deployment", "flow_run": str(run.id)}


def _is_served(client: SyncPrefectClient, name: str) -> bool:
    """Whether there is such a deployment, and a worker that takes its runs."""
    try:
        pool = client.read_deployment_by_name(name).work_pool_name
        if pool is None or client.read_work_pool(pool).status != WorkPoolStatus.READY:
            return False
        return any(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(pool))
    except ObjectNotFound:
        return False


def _trained_here(config: ModelConfig, source: str | None, why: str) -> dict[str, Any]:
    result = own_error(lambda: train(config.name, source, None, why, LOOP))
    kept = {name: result[name] for name in ("version", "verdict", "reason", "champion")}
    if result["verdict"] != "promoted":
        LOG.info("%s: the challenger v%d is %s: %s", config.name, *(kept[n] for n in ("version", "verdict", "reason")))
    return {"started": "in process", "flow_run": result["prefect_flow_run_id"], **kept}


def _rolled_back(response: Response) -> dict[str, Any]:
    model = response.model
    registry.initialise()
    repair_first(model)
    entry = rollback(model, response.to, why=_why(response), actor=LOOP, expect_champion=response.version)
    LOG.warning("%s: v%d took over again from v%d: %s", model, entry.version, response.version, response.why)
    return {"champion": entry.version, "former": response.version, "sequence": entry.sequence}


def _why(response: Response) -> str:
    """What the ledger is told: the findings, and the decision by its entry."""
    return f"{response.why} {reference(response.sequence or 0)}"
