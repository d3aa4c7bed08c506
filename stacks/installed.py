"""What is installed does not change while a process runs: ZenML may ask for it once instead of for each artifact.

ZenML 0.98 reads the metadata of every installed distribution for each type that an artifact is of, those of one more
for its version, and looks for each of its integrations' requirements whenever a pipeline is compiled: a fifth of the
CPU time of a small run. It parses the file of each step and materializer anew for each run, and writes the JSON schema
of its class with each artifact: a thirtieth each.
"""

import importlib.metadata
from collections.abc import Callable
from functools import cache, lru_cache, wraps
from typing import Any

SOURCES = 256


def remember_installed() -> None:
    """Make this process ask for distributions, ZenML's integrations, source code and schemas once; twice is once."""
    from zenml.integrations.registry import integration_registry
    from zenml.materializers.pydantic_materializer import PydanticMaterializer
    from zenml.utils import source_code_utils

    if getattr(importlib.metadata.packages_distributions, "__wrapped__", None):
        return
    importlib.metadata.packages_distributions = cache(importlib.metadata.packages_distributions)
    importlib.metadata.version = cache(importlib.metadata.version)
    activate = integration_registry.activate_integrations
    integration_registry.activate_integrations = wraps(activate)(cache(activate))
    schema_of: Callable[[Any], dict[str, Any]] = cache(lambda kind: kind.model_json_schema())
    PydanticMaterializer.extract_metadata = lambda _, data: {"schema": schema_of(type(data))}
    source_code_utils.get_source_code = lru_cache(SOURCES)(source_code_utils.get_source_code)


def ask_installed() -> None:
    """Ask for all of it now: whoever waits anyway has it when the first run needs it."""
    from zenml.integrations.registry import integration_registry

    remember_installed()
    importlib.metadata.packages_distributions()
    integration_registry.activate_integrations()
