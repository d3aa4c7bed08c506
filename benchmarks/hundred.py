"""A hundred small models by `gauntlet run --all` on two lanes: what a model costs beyond its steps, and memory.

`python -m benchmarks.hundred [--models N] [--limit LANES]` writes N YAMLs into a folder of its own, runs them all, and
prints a table and, as its last line, one JSON object. Overhead is wall time minus time inside step functions: wall time
of the whole run times the lanes, less the seconds of all step functions (ZenML's and Prefect's work around them, the
start of Prefect's server and of the lanes and their end are overhead), by the number of models. It stops by itself
after `--minutes`.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import yaml

from benchmarks._lane import FIGURES
from stacks.home import environment

OVERHEAD_LIMIT = 2.0
GROWTH_LIMIT = 1.15
SAMPLE_SECONDS = 2.0
ROOT = Path(__file__).parents[1]


def write_models(folder: Path, count: int) -> None:
    """Write small YAMLs, half of bundled and half of generated data, each with a seed of its own and 0 to 2 trials."""
    folder.mkdir()
    candidates = {"logistic_regression": {"C": {"loguniform": [0.1, 10]}}}
    bases = [yaml.safe_load((ROOT / "models" / f"{name}.yaml").read_text()) for name in ("wine", "heart_disease")]
    for number in range(count):
        base = bases[number % 2]
        source = dict(base["sources"][0])
        if source["kind"] == "synthetic":
            source |= {"rows": 300, "seed": number}
        name = f"small_{number:03d}"
        tuning = {"trials": number % 3, "candidates": candidates}
        model = {**base, "name": name, "seed": number, "sources": [source], "tuning": tuning, "gates": {}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(model, sort_keys=False), encoding="utf-8")


class Memory:
    """Samples of the memory of this process and all below it, in MiB, each page counted once."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample while the block is executed."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.samples.append((time.perf_counter(), _tree_mib()))

    def peak(self, begin: float, end: float) -> float:
        """Largest sample between two times."""
        return max((mib for moment, mib in self.samples if begin <= moment <= end), default=0.0)


def _tree_mib() -> float:
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total / 2**20


@contextmanager
def bounded_by(minutes: float) -> Iterator[None]:
    """Interrupt the block as Ctrl-C would, should it take longer."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(f"not done after {minutes:.0f} minutes")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def measure(
    report: Mapping[str, Any], timings: Sequence[Mapping[str, Any]], memory: Memory, begin: float, end: float
) -> dict[str, Any]:
    """The figures of one run.

    Args:
        report: What `gauntlet run --all` returned.
        timings: Seconds and CPU seconds of each step function, and of each model as a whole.
        memory: Samples over the run.
        begin: When the run began, on the samples' clock.
        end: When it ended.
    """
    count, lanes, wall = report["models"], report["lanes"], end - begin
    quarter = wall / 4
    by_step: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, float] = defaultdict(float)
    for timing in timings:
        by_step[timing["of"]].append(timing["seconds"])
        cpu[timing["of"]] += timing["cpu"]
    models, models_cpu = by_step.pop("model"), cpu.pop("model")
    inside = sum(map(sum, by_step.values()))
    first, last = memory.peak(begin, begin + quarter), memory.peak(end - quarter, end)
    return {
        "models": count,
        "failed": report["failed"],
        "lanes": lanes,
        "wall_s": round(wall, 1),
        "before_train_all_s": round(wall - report["seconds"], 1),
        "inside_steps_s": round(inside, 1),
        "overhead_s": round((wall * lanes - inside) / count, 2),
        "overhead_in_lane_s": round((sum(models) - inside) / count, 2),
        "overhead_cpu_s": round((models_cpu - sum(cpu.values())) / count, 2),
        "model_s": round(statistics.median(models), 2),
        "steps_s": {name: round(statistics.median(times), 2) for name, times in by_step.items()},
        "first_quarter_mib": round(first),
        "last_quarter_mib": round(last),
        "growth": round(last / first, 3) if first else None,
    }


def run(folder: Path, limit: int) -> dict[str, Any]:
    """Run all models of `folder` in a home of their own and return the figures."""
    os.environ.update(environment(folder / "home"))
    os.environ |= {
        "GAUNTLET_MODELS": str(folder / "models"),
        "GAUNTLET_SECRET": "benchmark",
        FIGURES: str(folder / "steps.jsonl"),
        "PYTHONPATH": str(ROOT),
    }
    from flows import lanes
    from flows.run import run_all

    lanes.LANE = "benchmarks._lane"
    memory = Memory()
    begin = time.perf_counter()
    with memory.watching():
        report = run_all(limit, None, [], "benchmark")
        end = time.perf_counter()
    for result in report["results"]:
        if result["error"]:
            print(f"{result['model']}: {result['error'][:300]}", file=sys.stderr)
    timings = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return measure(report, timings, memory, begin, end)


def main() -> int:
    """Measure, print, and return 1 when a figure is above its limit or a model failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--limit", type=int, default=2, help="lanes")
    parser.add_argument("--minutes", type=float, default=25)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        write_models(Path(folder) / "models", given.models)
        try:
            with bounded_by(given.minutes):
                figures = run(Path(folder), given.limit)
        except KeyboardInterrupt as interrupt:
            print(f"stopped: {interrupt}", file=sys.stderr)
            return 1
    print(f"{'step function':<12}{'median s':>10}")
    for name, seconds in figures["steps_s"].items():
        print(f"{name:<12}{seconds:>10.2f}")
    print(
        f"{figures['models']} models on {figures['lanes']} lanes: {figures['wall_s']:.0f} s, {figures['failed']} failed"
    )
    print(f"overhead a model {figures['overhead_s']:.2f} s (at most {OVERHEAD_LIMIT})")
    print("of it {overhead_in_lane_s:.2f} s while the model runs, {overhead_cpu_s:.2f} s of CPU time".format(**figures))
    memory = "{first_quarter_mib} MiB in the first quarter, {last_quarter_mib} MiB in the last".format(**figures)
    print(f"memory {memory} (at most {GROWTH_LIMIT} times)")
    print(json.dumps({"bench": "hundred", **figures, "limit": OVERHEAD_LIMIT}))
    good = not figures["failed"] and figures["overhead_s"] <= OVERHEAD_LIMIT
    return 0 if good and (figures["growth"] or 0) <= GROWTH_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
