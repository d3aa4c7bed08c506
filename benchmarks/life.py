"""A stranger's first minutes: `gauntlet --help`, `make run` on a fresh clone, the same again, and heart_disease.

Each figure is wall time of the real command, its peak memory that of its whole process tree.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Figure:
    """One measured command.

    Attributes:
        name: What was run.
        seconds: Wall time, the median where it was run more than once.
        limit: What the issue allows.
        peak_mib: Largest resident memory of the process tree, in MiB.
        steps: Seconds of each ZenML step, as the command printed them.
    """

    name: str
    seconds: float
    limit: float
    peak_mib: int
    steps: dict[str, float]


def _tree_mib(root: psutil.Process) -> int:
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total // 2**20


def _measure(name: str, limit: float, command: list[str], folder: Path, runs: int = 1) -> Figure:
    seconds, peak, printed = [], 0, ""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GAUNTLET_", "VIRTUAL_ENV"))}
    for _ in range(runs):
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines: list[str] = []
        reader = threading.Thread(target=lambda p=process, kept=lines: kept.extend(p.stdout or ()))
        reader.start()
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, _tree_mib(root)) if runs == 1 else peak
            except psutil.NoSuchProcess:
                break
            time.sleep(0.25 if runs == 1 else 0.01)
        reader.join()
        seconds.append(time.monotonic() - started)
        printed = "".join(lines)
        if process.wait() != 0:
            sys.exit(f"{name} failed:\n{printed[-3000:]}")
    steps = {step: float(took) for step, took in re.findall(r"✓ (\w+)\s+([\d.]+) s", printed)}
    return Figure(name, round(statistics.median(seconds), 2), limit, peak, steps)


def measure() -> list[Figure]:
    """Clone this repository's HEAD into a temporary folder and live the first minutes there."""
    with tempfile.TemporaryDirectory(prefix="gauntlet-life-") as folder:
        clone = Path(folder) / "gauntlet"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        help_command = [str(clone / ".venv/bin/gauntlet"), "--help"]
        return [
            _measure("make run, fresh clone, warm package cache", 120, ["make", "run"], clone),
            _measure("make run, second time", 30, ["make", "run"], clone),
            _measure("make run MODEL=heart_disease", 300, ["make", "run", "MODEL=heart_disease"], clone),
            _measure("gauntlet --help", 0.5, help_command, clone, runs=7),
        ]


def main() -> None:
    """Print the figures as a table and as one JSON line."""
    figures = measure()
    print(f"{'what':<44}{'seconds':>9}{'limit':>8}{'peak MiB':>10}  steps")
    for figure in figures:
        steps = ", ".join(f"{name} {took:g}" for name, took in figure.steps.items())
        print(f"{figure.name:<44}{figure.seconds:>9.2f}{figure.limit:>8.1f}{figure.peak_mib or '':>10}  {steps}")
    print(json.dumps({"benchmark": "life", "figures": [asdict(figure) for figure in figures]}))


if __name__ == "__main__":
    main()
