"""What ZenML knows of the flavor before it runs anything: name, configuration, settings. Imports no Prefect."""

import logging
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig
from zenml.orchestrators.base_orchestrator import BaseOrchestratorFlavor

if TYPE_CHECKING:
    from stacks.orchestrator.orchestrator import PrefectOrchestrator

logger = logging.getLogger(__name__)

FLAVOR_NAME = "prefect"


class PrefectOrchestratorSettings(BaseSettings):
    """What a pipeline may set for its runs, as `settings={"orchestrator": ...}`."""

    tags: tuple[str, ...] = Field((), description="Further tags of the Prefect flow run and its task runs.")
    log_prints: bool = Field(False, description="Whether what steps print is also sent to Prefect's log of the run.")
    synchronous: bool = Field(True, description="Whether the pipeline call waits for the end of a submitted run.")
    timezone: str = Field("UTC", description="Time zone of the cron expressions of schedules, as Europe/Berlin.")
    job_variables: dict[str, Any] = Field(
        default_factory=dict, description="Of the work pool's job, over what the pool and the resources of steps say."
    )


Runner = Literal["inline", "process", "dask"]


class PrefectOrchestratorConfig(BaseOrchestratorConfig, PrefectOrchestratorSettings):
    """Configuration of the component; its settings are the default of every pipeline on the stack.

    Attributes:
        runner: Where steps run. `inline`: one after another, in the process that executes the run. `process`: each in a
            process of its own on the same machine. `dask`: on Dask workers. Left out: `process` when `max_parallel` is
            above 1, else `inline`.
        max_parallel: How many steps of a run may run at once; left out, one, or with `dask_scheduler` as many as fit.
        dask_scheduler: Address of a Dask scheduler; left out, a cluster of this machine with `max_parallel` workers.
        work_pool: Prefect work pool whose workers execute the runs; left out, the calling process does.
        work_queue: Queue of that pool; its default one when left out.
    """

    runner: Runner | None = Field(None, description="Where steps run: inline, process or dask.")
    max_parallel: int = Field(1, ge=1, description="Steps that run at once; above 1, never in one process.")
    dask_scheduler: str | None = Field(None, description="Address of a Dask scheduler, such as tls://dask:8786.")
    work_pool: str | None = Field(None, description="Prefect work pool whose workers execute the runs.")
    work_queue: str | None = Field(None, description="Queue of the work pool.")

    @model_validator(mode="after")
    def _runner_fits(self) -> "PrefectOrchestratorConfig":
        if self.runner == "inline" and self.max_parallel > 1:
            raise ValueError("runner 'inline' runs one step at a time: take max_parallel out, or use 'process'")
        if self.dask_scheduler and self.runner != "dask":
            raise ValueError("dask_scheduler is for runner 'dask': set it, or take the address out")
        if self.work_queue and not self.work_pool:
            raise ValueError("work_queue is a queue of a work pool: set work_pool, or take the queue out")
        return self

    @property
    def where(self) -> Runner:
        """Where steps run, said or not."""
        return self.runner or ("process" if self.max_parallel > 1 else "inline")

    @property
    def is_local(self) -> bool:
        """Whether runs are bound to this machine: not those that a work pool or a given Dask scheduler takes."""
        return self.work_pool is None and self.dask_scheduler is None

    @property
    def is_remote(self) -> bool:
        """Whether ZenML has to be a server: never; a database that all reach is enough, which `validation` looks at."""
        return False

    @property
    def is_synchronous(self) -> bool:
        """Whether the run is over when the pipeline call returns: unless a work pool takes it and nobody waits."""
        return self.work_pool is None or self.synchronous

    @property
    def is_schedulable(self) -> bool:
        """Whether ZenML schedules are accepted: with a work pool, whose worker starts the runs."""
        if self.work_pool is None:
            logger.error("Schedules need a work pool, whose worker starts the runs: set the orchestrator's work_pool.")
        return self.work_pool is not None

    @property
    def supports_client_side_caching(self) -> bool:
        """Whether ZenML may take cached steps out before submission.

        Never: each step then has its task run and each ZenML run its flow run, also when all of it is cached.
        """
        return False

    @property
    def handles_step_retries(self) -> bool:
        """Whether retries are made here: yes, by Prefect, so that they are in its record of the task run."""
        return True


class PrefectOrchestratorFlavor(BaseOrchestratorFlavor):
    """Runs each ZenML pipeline as a Prefect flow run and each step as a task run of it."""

    @property
    def name(self) -> str:
        """The name that stacks use."""
        return FLAVOR_NAME

    @property
    def docs_url(self) -> str | None:
        """Where the flavor is described: in this project's own documentation, which has no fixed address."""
        return None

    @property
    def config_class(self) -> type[PrefectOrchestratorConfig]:
        """The configuration's class."""
        return PrefectOrchestratorConfig

    @property
    def implementation_class(self) -> type["PrefectOrchestrator"]:
        """The orchestrator's class; imported here so that reading a stack does not import Prefect."""
        from stacks.orchestrator.orchestrator import PrefectOrchestrator

        return PrefectOrchestrator
