"""Whether a stack fits this orchestrator: what runs on other machines must be able to read what this one writes."""

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.zen_stores.sql_zen_store import SqlZenStore

from stacks.orchestrator.flavor import PrefectOrchestratorConfig
from stacks.orchestrator.flow_run import prefect_api, prefect_client

if TYPE_CHECKING:
    from zenml.stack import Stack

LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")


def fits(config: PrefectOrchestratorConfig, stack: "Stack") -> tuple[bool, str]:
    """Whether the component can work in a stack, for ZenML's `StackValidator`.

    Args:
        config: The component's configuration.
        stack: The stack that it is in.

    Returns:
        Whether it can, and if not what is in the way and what to do, by the names of the components.
    """
    where = _elsewhere(config)
    if where is None:
        return True, ""
    head = f"orchestrator '{stack.orchestrator.name}' {where}"
    store = stack.artifact_store
    if store.config.is_local and _only_here(str(store.path)):
        return False, (
            f"{head}, which cannot read what artifact store '{store.name}' (flavor {store.flavor}) keeps "
            f"on this machine, in {store.path}: use an artifact store that both reach (flavor s3, gcp or azure, "
            "or local with a path that all machines mount)"
        )
    database = Client().zen_store
    if isinstance(database, SqlZenStore) and database.config.url.startswith("sqlite"):
        return False, (
            f"{head}, which cannot reach ZenML's database, the SQLite file of this machine: connect to a ZenML server "
            "(`zenml login URL`), or set ZENML_STORE_URL to a MySQL database that both reach"
        )
    return True, ""


def _elsewhere(config: PrefectOrchestratorConfig) -> str | None:
    """In words, what of a run happens on other machines; None when nothing does, as far as can be told."""
    if config.dask_scheduler and not _is_here(urlsplit(config.dask_scheduler).hostname or config.dask_scheduler):
        return f"runs steps on workers of the Dask scheduler {config.dask_scheduler}"
    if config.work_pool and (kind := _pool_type(config.work_pool)) not in (None, "process"):
        return f"runs pipelines on work pool '{config.work_pool}' (type {kind})"
    return None


def _is_here(host: str) -> bool:
    return host.startswith(LOOPBACK) or host in (socket.gethostname(), socket.getfqdn())


def _only_here(path: str) -> bool:
    """Whether a path is in ZenML's own folder of this machine; of others the user knows who mounts them."""
    return Path(path).is_relative_to(GlobalConfiguration().config_directory)


def _pool_type(name: str) -> str | None:
    """The type of a work pool; None when no Prefect server is there to be asked: submission asks again."""
    if PREFECT_API_URL.value() is None:
        return None
    with contextlib.suppress(Exception), prefect_api(), prefect_client() as client:
        return client.read_work_pool(name).type
    return None
