"""A home of its own for a benchmark, stacks in it that are equal but for the orchestrator, and how they compare."""

import json
import os
import statistics
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


def compare(bench: str, seconds: Mapping[str, Sequence[float]], ours: str, shown: str, limit: float) -> int:
    """Print the ratio to ZenML's orchestrator, which is the median of those of neighbouring runs, and the JSON line.

    Args:
        bench: Name of the benchmark.
        seconds: Of each counted run, by stack; ZenML's is `zenml`.
        ours: Our stack.
        shown: What ours is called in the JSON object.
        limit: Largest ratio that is good.

    Returns:
        1 when the ratio is above the limit.
    """
    ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds[ours], seconds["zenml"], strict=True))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"ratio {ratio:.2f} (at most {limit})")
    figures = {"zenml_s": medians["zenml"], f"{shown}_s": medians[ours], "ratio": ratio, "limit": limit}
    rounds = len(seconds[ours])
    print(json.dumps({"bench": bench, "rounds": rounds, **{k: round(v, 4) for k, v in figures.items()}}))
    return 0 if ratio <= limit else 1
