"""What the orchestrator adds: an eight-step no-op chain, warm, in one process, against ZenML's own `local` one.

`python -m benchmarks.chain [--rounds N] [--profile FILE]` prints a table and, as its last line, one JSON object.
Runs alternate between the two stacks, which differ in nothing but the orchestrator; caching is off. The ratio is the
median of the ratios of neighbouring runs, so that a machine that gets busier half way does not count for one of them.
"""

import argparse
import cProfile
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stacks.home import environment

LIMIT = 1.6


def prepare(home: Path) -> None:
    """Give this process a home of its own, with the stack `zenml` beside ours, equal but for the orchestrator."""
    os.environ.update(environment(home))
    os.environ |= {"ZENML_LOGGING_VERBOSITY": "WARN", "PREFECT_LOGGING_LEVEL": "WARNING"}
    (home / "mlflow").mkdir(parents=True)
    from zenml.client import Client
    from zenml.enums import StackComponentType
    from zenml.models import StackRequest

    from stacks.stack_file import apply

    apply("local")
    client = Client()
    components = {kind: [part.id for part in parts] for kind, parts in client.get_stack("local").components.items()}
    components[StackComponentType.ORCHESTRATOR] = [client.get_stack_component("orchestrator", "default").id]
    client.zen_store.create_stack(StackRequest(name="zenml", components=components))


def measure(run: Callable[[], object], rounds: int, profile: Path | None) -> dict[str, list[float]]:
    """Seconds of each run by stack, after two warm-up runs on each."""
    from zenml.client import Client

    seconds: dict[str, list[float]] = {"zenml": [], "local": []}
    profiler = cProfile.Profile() if profile else None
    for number in range(rounds + 2):
        for name, times in seconds.items():
            Client().activate_stack(name)
            watched = profiler if name == "local" and number >= 2 else None
            start = time.perf_counter()
            if watched:
                watched.runcall(run)
            else:
                run()
            if number >= 2:
                times.append(time.perf_counter() - start)
    if profiler and profile:
        profiler.dump_stats(profile)
    return seconds


def main() -> int:
    """Measure, print, and return 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", type=Path, help="write a cProfile of our runs here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        prepare(Path(folder))
        from benchmarks.noop import STEPS, nothing_chain

        seconds = measure(nothing_chain, given.rounds, given.profile)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds["local"], seconds["zenml"], strict=True))
    print(f"{'orchestrator':<16}{'median s':>10}{'fastest s':>11}{'ms a step':>11}")
    for name, label in (("zenml", "zenml local"), ("local", "prefect")):
        row = (medians[name], min(seconds[name]), 1000 * medians[name] / STEPS)
        print(f"{label:<16}{row[0]:>10.3f}{row[1]:>11.3f}{row[2]:>11.1f}")
    print(f"ratio {ratio:.2f} (at most {LIMIT})")
    figures = {"zenml_s": medians["zenml"], "prefect_s": medians["local"], "ratio": ratio, "limit": LIMIT}
    print(json.dumps({"bench": "chain", "rounds": given.rounds, **{k: round(v, 4) for k, v in figures.items()}}))
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
