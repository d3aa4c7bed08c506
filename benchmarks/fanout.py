"""What processes of their own give: a fan-out of four one-second steps, warm, against ZenML's own `local` orchestrator.

`python -m benchmarks.fanout [--rounds N]` prints a table and, as its last line, one JSON object. Runs alternate between
two stacks that differ in nothing but the orchestrator; caching is off. The first run on each stack, which starts the
process that the others are forked from, is not counted. The ratio is the median of the ratios of neighbouring runs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stacks.home import environment

LIMIT = 0.6
STACKS = {"zenml": "zenml local", "parallel": "prefect, parallel"}


def prepare(home: Path) -> None:
    """Give this process a home of its own, with two stacks that are equal but for the orchestrator."""
    os.environ.update(environment(home))
    os.environ |= {"ZENML_LOGGING_VERBOSITY": "WARN", "PREFECT_LOGGING_LEVEL": "WARNING"}
    (home / "mlflow").mkdir(parents=True)
    from zenml.client import Client
    from zenml.enums import StackComponentType
    from zenml.models import StackRequest

    from benchmarks.noop import WIDTH
    from stacks.stack_file import apply

    apply("local")
    client = Client()
    kind = StackComponentType.ORCHESTRATOR
    ours = client.create_stack_component("parallel", "prefect", kind, {"max_parallel": WIDTH})
    orchestrators = {"zenml": client.get_stack_component(kind, "default").id, "parallel": ours.id}
    shared = {each: [part.id for part in parts] for each, parts in client.get_stack("local").components.items()}
    for name, orchestrator in orchestrators.items():
        client.zen_store.create_stack(StackRequest(name=name, components={**shared, kind: [orchestrator]}))


def measure(run: Callable[[], object], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run by stack; the first of each is the one that is not counted."""
    from zenml.client import Client

    seconds: dict[str, list[float]] = {name: [] for name in STACKS}
    for _ in range(rounds + 1):
        for name, times in seconds.items():
            Client().activate_stack(name)
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return seconds


def main() -> int:
    """Measure, print, and return 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        prepare(Path(folder))
        from benchmarks.noop import fan_out

        seconds = measure(fan_out, given.rounds)
    first = {name: times.pop(0) for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds["parallel"], seconds["zenml"], strict=True))
    print(f"{'orchestrator':<20}{'median s':>10}{'fastest s':>11}{'first s':>9}")
    for name, label in STACKS.items():
        print(f"{label:<20}{medians[name]:>10.2f}{min(seconds[name]):>11.2f}{first[name]:>9.2f}")
    print(f"ratio {ratio:.2f} (at most {LIMIT})")
    figures = {"zenml_s": medians["zenml"], "parallel_s": medians["parallel"], "ratio": ratio, "limit": LIMIT}
    print(json.dumps({"bench": "fanout", "rounds": given.rounds, **{k: round(v, 4) for k, v in figures.items()}}))
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
