"""What Dask workers give: a fan-out of 16 steps of two seconds of CPU each on two workers, against ZenML's `local`.

`python -m benchmarks.dask_fanout [--rounds N] [--steps N]` prints a table and, as its last line, one JSON object. Runs
alternate between two stacks that differ in nothing but the orchestrator; caching is off. The first run on each stack,
which starts the workers and what steps are forked from, is not counted. The ratio is the median of the ratios of
neighbouring runs; 1.6 times faster is a ratio of 0.625.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._stacks import add_stacks, compare, in_turn, own_home

LIMIT = 1 / 1.6
WORKERS = 2
STACKS = {"zenml": "zenml local", "dask": "prefect, two Dask workers"}


def main() -> int:
    """Measure, print, and return 1 when the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        own_home(Path(folder))
        from benchmarks.noop import SPIN_SECONDS, spin_out

        add_stacks({"zenml": None, "dask": {"runner": "dask", "max_parallel": WORKERS}})
        seconds = in_turn(lambda: spin_out(given.steps), tuple(STACKS), 1 + given.rounds)
    first = {name: times.pop(0) for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    work = given.steps * SPIN_SECONDS
    print(f"{'orchestrator':<28}{'median s':>10}{'fastest s':>11}{'first s':>9}{'beside work, s a step':>23}")
    for name, label in STACKS.items():
        beside = (medians[name] - work / (WORKERS if name == "dask" else 1)) / given.steps
        print(f"{label:<28}{medians[name]:>10.2f}{min(seconds[name]):>11.2f}{first[name]:>9.2f}{beside:>23.2f}")
    print(
        f"{statistics.median(z / d for z, d in zip(seconds['zenml'], seconds['dask'], strict=True)):.2f} times faster"
    )
    return compare("dask_fanout", seconds, "dask", "dask", LIMIT)


if __name__ == "__main__":
    sys.exit(main())
