"""Drift of a window of a million rows beside Evidently on the raw frames, and whether both decide alike.

`python -m benchmarks.drift [--rows N] [--frames N]` prints a table and, as its last line, one JSON object. Rows are
heart_disease's 13 columns; the reference is the 20,000 rows that a Release keeps. Timed are the judgement of all
columns (Jensen-Shannon, against chance, missing values, new categories, quantiles of all rows), Evidently's page of the
bounded sample, and Evidently's Jensen-Shannon on the raw frames: with the same reference, and with a million rows of
it. The planted cases move every column of a window of 50,000 rows so far that Evidently measures 0.02 to 0.08 or 0.12
to 0.25 on a population of 40,000.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stacks.home import environment

SECONDS, MEBIBYTES, TIMES = 10, 2_048, 4
MODEL, METHOD = "heart_disease", "jensenshannon"
REFERENCE, CASE_ROWS = 20_000, 50_000


@dataclass(frozen=True)
class Seconds:
    """On the wall, and of the processor: what else runs on the machine changes the first only."""

    wall: float
    processor: float


def evidently_scores(reference: Any, window: Any) -> dict[str, float]:
    """Evidently's own Jensen-Shannon distance of each column of raw frames."""
    import numpy as np
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    named = [name for name in window if window[name].dtype == object]
    definition = DataDefinition(
        numerical_columns=[name for name in window if name not in named],
        categorical_columns=named,
        datetime_columns=[],
        text_columns=[],
    )
    sides = [Dataset.from_pandas(side, data_definition=definition) for side in (window, reference)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        report = Report([ValueDrift(column=name, method=METHOD, threshold=0.1) for name in window]).run(*sides)
    return {name: float(found["value"]) for name, found in zip(window, report.dict()["metrics"], strict=True)}


def timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    """How long it took, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor), result


def speed(rows: int) -> tuple[dict[str, Seconds], float]:
    """Seconds of each way, and the peak of this process, in MiB, before Evidently saw a raw frame."""
    from steps.dataset_drift import dataset_drift
    from steps.drift_page import drift_page
    from tests.steps.planted import fresh, model

    config = model(MODEL)
    names = config.input_names()
    whole, window = (fresh(MODEL, rows, seed)[names] for seed in (1, 2))
    reference = whole.sample(min(REFERENCE, rows), random_state=config.seed).reset_index(drop=True)
    drift_page(config, reference.head(1_000), window.head(1_000))  # imports
    judging, drift = timed(lambda: dataset_drift(config, reference, window))
    page, _ = timed(lambda: drift_page(config, reference, window))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sampled, _ = timed(lambda: evidently_scores(reference, window))
    raw, _ = timed(lambda: evidently_scores(whole, window))
    if drift.drifted_columns:
        raise RuntimeError(f"rows of the same generator drifted: {drift.drifted_columns}")
    return {"judge": judging, "page": page, "evidently_reference": sampled, "evidently_raw": raw}, peak


def decisions(frames: int) -> dict[str, int]:
    """Planted cases: how many, how many drifted by Evidently, and how many we decide otherwise."""
    import numpy as np

    from steps.dataset_drift import dataset_drift
    from tests.steps.planted import fresh, model, moved, strength_for

    config, rng = model(MODEL), np.random.default_rng(0)
    names = config.input_names()
    reference = fresh(MODEL, REFERENCE, 3)[names]
    found = {"cases": 0, "drifted": 0, "otherwise": 0, "near": 0}
    for place in range(frames):
        window = fresh(MODEL, CASE_ROWS, 100 + place)[names]
        far = {n: rng.uniform(0.12, 0.25) if rng.random() < 0.5 else rng.uniform(0.02, 0.08) for n in names}
        window = window.assign(**{n: moved(window[n], strength_for(MODEL, n, d), place) for n, d in far.items()})
        ours, theirs = (
            set(dataset_drift(config, reference, window).drifted_columns),
            evidently_scores(reference, window),
        )
        found["cases"] += len(names)
        found["drifted"] += sum(score >= 0.1 for score in theirs.values())
        found["otherwise"] += sum((name in ours) != (theirs[name] >= 0.1) for name in names)
        found["near"] += sum(abs(d - 0.1) < 0.02 for d in far.values())
    return found


def main() -> int:
    """Measure, print, and return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--frames", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(environment(Path(home)) | {"GAUNTLET_SECRET": "benchmark"})
        (took, peak), cases = speed(options.rows), decisions(options.frames)
    ours = took["judge"].processor + took["page"].processor
    times = took["evidently_raw"].processor / ours
    print("| what | processor seconds | wall seconds |\n|---|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {seconds.processor:.2f} | {seconds.wall:.2f} |")
    print(f"{times:.1f} times faster, peak {peak:,.0f} MiB, {cases}")
    met = ours < SECONDS and peak < MEBIBYTES and times >= TIMES and not cases["otherwise"] and not cases["near"]
    told = {name: asdict(seconds) for name, seconds in took.items()}
    print(
        json.dumps(
            {"benchmark": "drift", "rows": options.rows, "times": times, "peak": peak, **told, **cases, "met": met}
        )
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
