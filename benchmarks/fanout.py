"""What processes of their own give: a fan-out of four one-second steps, warm, against ZenML's own `local` orchestrator.

`python -m benchmarks.fanout [--rounds N]` prints a table and, as its last line, one JSON object. Runs alternate between
two stacks that differ in nothing but the orchestrator; caching is off. The first run on each stack, which starts the
process that the others are forked from, is not counted. The ratio is the median of the ratios of neighbouring runs.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._stacks import add_stacks, compare, in_turn, own_home

LIMIT = 0.6
STACKS = {"zenml": "zenml local", "parallel": "prefect, parallel"}


def main() -> int:
    """Measure, print, and return 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        own_home(Path(folder))
        from benchmarks.noop import WIDTH, fan_out

        add_stacks({"zenml": None, "parallel": {"max_parallel": WIDTH}})
        seconds = in_turn(fan_out, tuple(STACKS), 1 + given.rounds)
    first = {name: times.pop(0) for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{'orchestrator':<20}{'median s':>10}{'fastest s':>11}{'first s':>9}")
    for name, label in STACKS.items():
        print(f"{label:<20}{medians[name]:>10.2f}{min(seconds[name]):>11.2f}{first[name]:>9.2f}")
    return compare("fanout", seconds, "parallel", "parallel", LIMIT)


if __name__ == "__main__":
    sys.exit(main())
