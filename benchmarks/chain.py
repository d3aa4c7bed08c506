"""What the orchestrator adds: an eight-step no-op chain, warm, in one process, against ZenML's own `local` one.

`python -m benchmarks.chain [--rounds N]` prints a table and, as its last line, one JSON object.
Runs alternate between the two stacks, which differ in nothing but the orchestrator; caching is off. The ratio is the
median of the ratios of neighbouring runs, so that a machine that gets busier half way does not count for one of them.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._stacks import add_stacks, compare, in_turn, own_home

LIMIT = 1.6
WARM_UP = 2


def main() -> int:
    """Measure, print, and return 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        own_home(Path(folder))
        from benchmarks.noop import STEPS, nothing_chain

        add_stacks({"zenml": None})
        seconds = in_turn(nothing_chain, ("zenml", "local"), WARM_UP + given.rounds)
    seconds = {name: times[WARM_UP:] for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{'orchestrator':<16}{'median s':>10}{'fastest s':>11}{'ms a step':>11}")
    for name, label in (("zenml", "zenml local"), ("local", "prefect")):
        row = (medians[name], min(seconds[name]), 1000 * medians[name] / STEPS)
        print(f"{label:<16}{row[0]:>10.3f}{row[1]:>11.3f}{row[2]:>11.1f}")
    return compare("chain", seconds, "local", "prefect", LIMIT)


if __name__ == "__main__":
    sys.exit(main())
