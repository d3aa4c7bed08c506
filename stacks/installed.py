"""What is installed does not change while a process runs: ZenML may ask for it once instead of for each artifact.

ZenML 0.98 reads the metadata of every installed distribution for each type that an artifact is of, those of one more
for its version, and looks for each of its integrations' requirements whenever a pipeline is compiled: a fifth of the
CPU time of a small run. It parses the file of each step and materializer anew for each run: a thirtieth.
"""

import importlib.metadata
from functools import cache, lru_cache, wraps

SOURCES = 256


def remember_installed() -> None:
    """Make this process ask for distributions, ZenML's integrations and source code once. Twice is the same as once."""
    from zenml.integrations.registry import integration_registry
    from zenml.utils import source_code_utils

    if getattr(importlib.metadata.packages_distributions, "__wrapped__", None):
        return
    importlib.metadata.packages_distributions = cache(importlib.metadata.packages_distributions)
    importlib.metadata.version = cache(importlib.metadata.version)
    activate = integration_registry.activate_integrations
    integration_registry.activate_integrations = wraps(activate)(cache(activate))
    source_code_utils.get_source_code = lru_cache(SOURCES)(source_code_utils.get_source_code)
