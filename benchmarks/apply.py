"""A second `gauntlet stack apply local`, which has nothing to change, beside the bare import of ZenML's client.

The limit is five seconds. Both are started as processes, in turn, in a home of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stacks.home import environment

ROOT = Path(__file__).parents[1]
LIMIT = 5.0
COMMANDS = {
    "gauntlet stack apply local, again": ["-m", "flows", "stack", "apply", "local", "--json"],
    "import zenml.client": ["-c", "import zenml.client"],
}


def _seconds(arguments: list[str], variables: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=variables, cwd=ROOT, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return took


def measure(rounds: int) -> dict[str, float]:
    """Median seconds of each command over so many rounds, after a first apply that makes the stack."""
    with tempfile.TemporaryDirectory(prefix="gauntlet-apply-") as folder:
        variables = {**os.environ, **environment(Path(folder))}
        (Path(folder) / "mlflow").mkdir()
        _seconds(COMMANDS["gauntlet stack apply local, again"], variables)
        seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(rounds):
            for name, arguments in COMMANDS.items():
                seconds[name].append(_seconds(arguments, variables))
    return {name: round(statistics.median(each), 2) for name, each in seconds.items()}


def main() -> int:
    """Print the figures as a table and as one JSON line; the exit code says whether the limit was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    medians = measure(parser.parse_args().rounds)
    again, bare = medians.values()
    for name, took in medians.items():
        print(f"{name:<36}{took:>8.2f} s")
    print(f"{'ratio':<36}{again / bare:>8.2f}    (limit {LIMIT:g} s)")
    print(json.dumps({"benchmark": "apply", "seconds": medians, "ratio": round(again / bare, 2), "limit": LIMIT}))
    return int(again > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
