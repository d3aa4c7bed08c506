"""Runs on a work pool: handed to Prefect, executed by a worker, followed from here as long as somebody looks.

`work_pool` in the component's configuration sends every run of the stack there. Only the ids of ZenML's snapshot and
run are handed over; the worker asks ZenML for environment and secrets. The pipeline call waits for the end of the run
unless the setting `synchronous` is off; who waits may be interrupted or killed, the run goes on. A run of a pipeline
that is called inside a Prefect flow run joins that one instead, wherever it is.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_HOME
from prefect.states import Cancelled, Cancelling
from zenml.client import Client
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID, METADATA_ORCHESTRATOR_URL
from zenml.exceptions import IllegalOperationError
from zenml.metadata.metadata_types import Uri
from zenml.models import PipelineRunUpdate
from zenml.orchestrators import SubmissionResult
from zenml.orchestrators.exceptions import PipelineSubmissionError
from zenml.utils import source_utils

from stacks.orchestrator.ctrl_c import noted_interrupt
from stacks.orchestrator.deployments import Wish, ensure_deployment, pool_deployment
from stacks.orchestrator.flow_run import flow_run_url, prefect_api, prefect_client
from stacks.orchestrator.outcome import end_run, fail_run
from stacks.orchestrator.server import ServerError, require_answer, without_credentials
from stacks.orchestrator.work_pool import Refused, find_pool, job_variables

if TYPE_CHECKING:
    from zenml.config.resource_settings import ResourceSettings
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

    from stacks.orchestrator.flavor import PrefectOrchestratorConfig, PrefectOrchestratorSettings

logger = logging.getLogger(__name__)

LONGEST = 1000
FIRST_LOOK_SECONDS = 0.5
LOOK_SECONDS = 5.0
LATE_SECONDS = 30.0


def submit_run(
    config: "PrefectOrchestratorConfig",
    settings: "PrefectOrchestratorSettings",
    snapshot: "PipelineSnapshotResponse",
    run: "PipelineRunResponse",
) -> SubmissionResult:
    """Hand a run to the component's work pool.

    Returns:
        At once, with the run's link, and with what follows it to its end unless the settings say otherwise.

    Raises:
        PipelineSubmissionError: Prefect did not take it; ZenML's run has failed for the same reason.
    """
    assert config.work_pool is not None
    with submission(run), prefect_api(), prefect_client() as client:
        if run.orchestrator_run_id:
            raise Refused(
                f"run {run.name} was flow run {run.orchestrator_run_id} already, and a work pool resumes none: run the "
                "pipeline again, finished steps come from the cache"
            )
        variables = pool_variables(client, config, settings, snapshot)
        pipeline = snapshot.pipeline_configuration.name
        name = pool_deployment(config.work_pool, config.work_queue)
        deployment_id = ensure_deployment(client, Wish(pipeline, name, config.work_pool, config.work_queue))
        flow_run = client.create_flow_run_from_deployment(
            deployment_id,
            parameters={"snapshot_id": str(snapshot.id), "run_id": str(run.id)},
            name=run.name,
            tags=[*settings.tags, str(run.id)],
            work_queue_name=config.work_queue,
            job_variables=variables,
        )
        _write_id(client, run, flow_run.id)
        url = flow_run_url(flow_run.id)
    logger.info("Run %s was handed to work pool '%s': %s", run.name, config.work_pool, url)
    pool = config.work_pool
    return SubmissionResult(
        wait_for_completion=(lambda: follow(run, flow_run.id, pool)) if settings.synchronous else None,
        metadata={METADATA_ORCHESTRATOR_URL: Uri(url), METADATA_ORCHESTRATOR_RUN_ID: str(flow_run.id)},
    )


@contextmanager
def submission(run: "PipelineRunResponse | None") -> Iterator[None]:
    """Make whatever goes wrong while something is handed over an error that says so, and a failed run.

    Raises:
        PipelineSubmissionError: Something went wrong; the text says what and what to do.
    """
    try:
        require_answer(PREFECT_HOME.value())
        yield
    except (Refused, ServerError) as error:
        reason = str(error)
    except httpx.HTTPStatusError as error:
        reason = f"Prefect refused it (HTTP {error.response.status_code}): {error.response.text}"
    except httpx.HTTPError as error:
        address = without_credentials(str(PREFECT_API_URL.value()))
        reason = (
            f"Prefect at {address} does not answer ({type(error).__name__} {error}): start that server "
            "(`prefect server start`), or set PREFECT_API_URL to one that runs"
        )
    else:
        return
    reason = f"it was not submitted: {reason}"[:LONGEST]
    if run:
        fail_run(run.id, reason)
    raise PipelineSubmissionError(reason)


def pool_variables(
    client: SyncPrefectClient,
    config: "PrefectOrchestratorConfig",
    settings: "PrefectOrchestratorSettings",
    snapshot: "PipelineSnapshotResponse",
) -> dict[str, Any]:
    """What a run of the pipeline tells the job of the component's pool.

    Raises:
        Refused: There is no such pool or queue, or its jobs have no such variable.
    """
    assert config.work_pool is not None
    pool = find_pool(client, config.work_pool, config.work_queue)
    return job_variables(pool, _resources(config, snapshot), settings.job_variables, _source_root())


def _resources(
    config: "PrefectOrchestratorConfig", snapshot: "PipelineSnapshotResponse"
) -> Iterator["ResourceSettings"]:
    """What the steps ask for that run in the job; those on a Dask cluster elsewhere do not."""
    if config.where == "dask" and config.dask_scheduler:
        return
    for step in snapshot.step_configurations.values():
        if not step.config.step_operator:
            yield step.config.resource_settings


def _source_root() -> str | None:
    try:
        return source_utils.get_source_root()
    except RuntimeError:
        # An interactive session without a file of its own.
        return None


def _write_id(client: SyncPrefectClient, run: "PipelineRunResponse", flow_run_id: UUID) -> None:
    """Write the flow run's id to ZenML's placeholder; without it nobody could stop the run."""
    store = Client().zen_store
    try:
        store.update_run(run.id, PipelineRunUpdate(orchestrator_run_id=str(flow_run_id)))
    except BaseException as error:
        faster = isinstance(error, IllegalOperationError)
        if faster and store.get_run(run.id).orchestrator_run_id == str(flow_run_id):
            # The worker was: the run has begun, and has its id.
            return
        client.set_flow_run_state(flow_run_id, Cancelled(message="ZenML could not be told of it."), force=True)
        raise


def follow(run: "PipelineRunResponse", flow_run_id: UUID, pool: str) -> None:
    """Wait for the end of a submitted run.

    An API that is away for a while is waited for; a run that no worker takes is said, once.

    Raises:
        RuntimeError: The run did not complete, or Prefect no longer knows it.
    """
    with prefect_api(), _quiet_requests(), noted_interrupt() as interrupted:
        state = _await_end(run, flow_run_id, _say_once(lambda: _warn_late(run, pool)), interrupted)
    end_run(run.id, state)
    if not state.is_completed():
        raise RuntimeError(f"run {run.name} is {state.name} in Prefect: {(state.message or '')[:LONGEST]}")


@contextmanager
def _quiet_requests() -> Iterator[None]:
    """Leave the line that each request is logged with out: there is one every few seconds."""
    requests = logging.getLogger("httpx")
    before = requests.level
    requests.setLevel(logging.WARNING)
    try:
        yield
    finally:
        requests.setLevel(before)


def _await_end(
    run: "PipelineRunResponse", flow_run_id: UUID, late: Callable[[], None], interrupted: Callable[[], bool]
) -> State[Any]:
    begin, pause, away = time.monotonic(), FIRST_LOOK_SECONDS, False
    while True:
        if interrupted():
            # Python may drop the exception of Ctrl-C.
            raise KeyboardInterrupt
        try:
            state = read_flow_run(flow_run_id).state
            if state is not None and state.is_final():
                return state
            if away:
                logger.info("Prefect answers again; run %s is %s.", run.name, state.name if state else "new")
            away = False
            waiting = state is None or state.is_scheduled() or state.is_pending()
            if waiting and time.monotonic() - begin > LATE_SECONDS:
                late()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            if not away:
                logger.warning(
                    "Prefect does not answer (%s); run %s goes on without it.", type(error).__name__, run.name
                )
            away = True
        time.sleep(pause)
        pause = min(LOOK_SECONDS, pause * 1.3)


def read_flow_run(flow_run_id: UUID) -> FlowRun:
    """A flow run as Prefect has it; call it inside `prefect_api`.

    Raises:
        RuntimeError: Prefect does not know it.
    """
    with prefect_client() as client:
        try:
            return client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            raise RuntimeError(f"Prefect has no flow run {flow_run_id}: it was deleted there") from None


def _say_once(say: Callable[[], None]) -> Callable[[], None]:
    said = False

    def once() -> None:
        nonlocal said
        if not said:
            said = True
            say()

    return once


def _warn_late(run: "PipelineRunResponse", pool: str) -> None:
    with prefect_client() as client:
        workers = [worker for worker in client.read_workers_for_work_pool(pool) if worker.status == "ONLINE"]
    if workers:
        cause = f"{len(workers)} of its workers are there, and busy with other runs or at the pool's limit"
    else:
        cause = f"no worker of it is there: `prefect worker start --pool {pool}` starts one"
    logger.warning(
        "Run %s waits for a worker of pool '%s'; %s. Ctrl-C ends the waiting, not the run; "
        "`zenml pipeline runs stop %s` takes it back.",
        run.name,
        pool,
        cause,
        run.id,
    )


def cancel(flow_run_id: UUID) -> State[Any] | None:
    """Ask Prefect to cancel a flow run: its worker ends the process; one that no worker has is cancelled at once.

    Returns:
        The state that the flow run then has; None when it was over already.
    """
    with prefect_api():
        state = read_flow_run(flow_run_id).state
        if state is not None and state.is_final():
            return None
        begun = state is not None and (state.is_running() or state.is_pending() or state.is_cancelling())
        wanted: State[Any] = Cancelling() if begun else Cancelled(message="It was stopped in ZenML.")
        with prefect_client() as client:
            client.set_flow_run_state(flow_run_id, wanted)
        return read_flow_run(flow_run_id).state
