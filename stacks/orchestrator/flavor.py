"""What ZenML knows of the flavor before it runs anything: name, configuration, settings. Imports no Prefect."""

from typing import TYPE_CHECKING

from pydantic import Field
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig
from zenml.orchestrators.base_orchestrator import BaseOrchestratorFlavor

if TYPE_CHECKING:
    from stacks.orchestrator.orchestrator import PrefectOrchestrator

FLAVOR_NAME = "prefect"


class PrefectOrchestratorSettings(BaseSettings):
    """What a pipeline may set for its runs, as `settings={"orchestrator": ...}`."""

    tags: tuple[str, ...] = Field((), description="Further tags of the Prefect flow run and its task runs.")
    log_prints: bool = Field(False, description="Whether what steps print is also sent to Prefect's log of the run.")


class PrefectOrchestratorConfig(BaseOrchestratorConfig, PrefectOrchestratorSettings):
    """Configuration of the component; its settings are the default of every pipeline on the stack.

    Attributes:
        max_parallel: How many steps of a run may run at once. 1: one after another, in the calling process. More: each
            in a process of its own.
    """

    max_parallel: int = Field(1, ge=1, description="Steps that run at once; above 1, each in a process of its own.")

    @property
    def is_local(self) -> bool:
        """Whether steps run on this machine: always."""
        return True

    @property
    def is_synchronous(self) -> bool:
        """Whether the run is over when the pipeline call returns: always."""
        return True

    @property
    def is_schedulable(self) -> bool:
        """Whether ZenML schedules are accepted: never; ZenML refuses them with a message."""
        return False

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
