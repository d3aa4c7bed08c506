"""A home of its own for a benchmark, and stacks in it that are equal but for the orchestrator."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stacks.home import environment


def own_home(home: Path) -> None:
    """Give this process a home, with the stack `local` in it; to be called before ZenML is imported."""
    os.environ.update(environment(home))
    os.environ |= {"ZENML_LOGGING_VERBOSITY": "WARN", "PREFECT_LOGGING_LEVEL": "WARNING"}
    (home / "mlflow").mkdir(parents=True)
    from stacks.stack_file import apply

    apply("local")


def add_stacks(orchestrators: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Add stacks that are as `local`.

    Args:
        orchestrators: Stack to the configuration of our orchestrator in it; None for ZenML's own `local` one.
    """
    from zenml.client import Client
    from zenml.enums import StackComponentType
    from zenml.models import StackRequest

    client = Client()
    kind = StackComponentType.ORCHESTRATOR
    shared = {each: [part.id for part in parts] for each, parts in client.get_stack("local").components.items()}
    for name, configuration in orchestrators.items():
        orchestrator = (
            client.get_stack_component(kind, "default")
            if configuration is None
            else client.create_stack_component(name, "prefect", kind, dict(configuration))
        )
        client.zen_store.create_stack(StackRequest(name=name, components={**shared, kind: [orchestrator.id]}))


def in_turn(run: Callable[[], object], stacks: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run by stack; the stacks take turns."""
    from zenml.client import Client

    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    for _ in range(rounds):
        for name, times in seconds.items():
            Client().activate_stack(name)
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return seconds
