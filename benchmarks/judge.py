"""Judging a million scored rows: every figure with its interval, class by class, slices, and beside a champion.

`python -m benchmarks.judge [--rows N] [--only PART] [--profile FILE]` prints a table and, as its last line, one JSON
object. Rows are the made-up ones of heart_disease (two classes) and obesity (seven), with scores drawn around their
classes; each is judged in a process of its own, whose peak memory and CPU time are taken. Making and scoring the rows
is not timed, but its memory is counted.
"""

import argparse
import cProfile
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stacks.home import clone_dir, environment

SECONDS, MEBIBYTES = 60.0, 4096.0
TASKS = ("heart_disease", "obesity")
COLUMNS = {"heart_disease": ("sex", "cp", "age_group"), "obesity": ("Gender", "MTRANS", "age_group")}


def scored(model: str, rows: int) -> tuple[Any, Any, Any, Any]:
    """Configuration, typed rows with the target, and a challenger's and a champion's scores around the true class."""
    import numpy as np

    from bentos.release import Answers
    from models.config import load_model, parse_set
    from steps.generators import GENERATORS
    from steps.rows import typed_rows

    columns = ",".join(COLUMNS[model])
    config = load_model(model, [parse_set([f"evaluation.slices.columns=[{columns}]"])]).config
    frame = typed_rows(config, [GENERATORS[model].make(rows, 1, {})]).frame
    labels = np.array(config.target.labels, dtype=object)
    truth = frame[config.target.column].to_numpy()[:, None] == labels

    def answers(seed: int, sharp: float) -> Answers:
        raw = np.exp(np.random.default_rng(seed).normal(size=truth.shape) + sharp * truth)
        probabilities = raw / raw.sum(axis=1, keepdims=True)
        return Answers(labels[probabilities.argmax(axis=1)], probabilities)

    return config, frame, answers(2, 1.5), answers(3, 1.4)


def judged(config: Any, frame: Any, answers: Any, champion: Any) -> dict[str, float]:
    """Seconds of each part of judging."""
    from steps.compare import contest
    from steps.fairness import measure_fairness
    from steps.measure import measure
    from steps.metrics import compute_metrics
    from steps.slices import slices

    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - started
        return result

    labels, truth = config.target.labels, frame[config.target.column].to_numpy()
    figures = timed("figures", lambda: compute_metrics(config, labels, truth, answers))
    measured = timed("intervals", lambda: measure(config, labels, truth, answers))
    parts = timed("slices", lambda: slices(config, labels, frame, answers, figures[config.metric]))
    timed("fairness", lambda: measure_fairness(config, labels, frame, answers))
    compared = timed("champion", lambda: contest(config, labels, truth, champion, answers))
    differences = timed("differences", lambda: compared.differences())
    if set(differences) != set(figures):
        raise RuntimeError(f"{len(differences)} differences of {len(figures)} figures")
    if set(measured.intervals) != set(figures) or len(measured.classes) != len(labels) or len(parts) < len(COLUMNS):
        raise RuntimeError(f"{len(measured.intervals)} intervals of {len(figures)} figures, {len(parts)} slices")
    return seconds


def measure_one(model: str, rows: int, profile: Path | None) -> dict[str, float]:
    """Judge in this process: seconds of the parts, and the CPU time and peak memory (MiB) of this process."""
    judged(*scored(model, 2_000))  # imports
    prepared = scored(model, rows)
    profiler, began = cProfile.Profile(), time.process_time()
    seconds = profiler.runcall(judged, *prepared) if profile else judged(*prepared)
    if profile:
        profiler.dump_stats(profile)
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return {
        **seconds,
        "CPU": time.process_time() - began,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale,
    }


def in_process(model: str, rows: int, home: Path) -> dict[str, float]:
    """The same in a process of its own, which ends with the answer."""
    command = [sys.executable, "-m", "benchmarks.judge", "--only", model, "--rows", str(rows)]
    env = os.environ | environment(home) | {"GAUNTLET_SECRET": "benchmark"}
    done = subprocess.run(command, env=env, cwd=clone_dir(), check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> int:
    """Measure, print, and return 1 when time or memory is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=TASKS, help="judge this in this process and print its figures as JSON")
    parser.add_argument("--profile", type=Path, help="with --only: write a cProfile here")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure_one(options.only, options.rows, options.profile)))
        return 0
    with tempfile.TemporaryDirectory() as home:
        results = {model: in_process(model, options.rows, Path(home)) for model in TASKS}
    print(f"{options.rows:,} scored rows, 1,000 resamples; seconds\n")
    parts = [part for part in results[TASKS[0]] if part not in ("CPU", "MiB")]
    print(f"{'rows of':<16}" + "".join(f"{part:>12}" for part in parts) + f"{'all':>10}{'CPU':>10}{'peak MiB':>12}")
    met = True
    for model, figures in results.items():
        total = sum(figures[part] for part in parts)
        met &= total <= SECONDS and figures["MiB"] <= MEBIBYTES
        print(f"{model:<16}" + "".join(f"{figures[part]:>12.1f}" for part in parts) + f"{total:>10.1f}", end="")
        print(f"{figures['CPU']:>10.1f}{figures['MiB']:>12,.0f}")
    print(f"\nlimits {SECONDS:.0f} s and {MEBIBYTES:,.0f} MiB: {'met' if met else 'MISSED'}")
    rounded = {model: {name: round(value, 2) for name, value in figures.items()} for model, figures in results.items()}
    print(json.dumps({"benchmark": "judge", "rows": options.rows, **rounded, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
