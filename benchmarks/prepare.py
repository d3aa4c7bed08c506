"""Validate and prepare: rows a second on a million rows of heart_disease's 13 columns, every check on.

`python -m benchmarks.prepare [--rows N] [--rounds N] [--profile FILE]` prints a table and, as its last line, one JSON
object. The rows start as text cells (what a CSV gives) and as typed numbers (what Parquet gives); each stage is timed
on its own: typing, validation (Great Expectations, leaks, drift from a reference of 20,000 rows), split, and the
derived columns of both sides. Making the rows is not timed. Medians count.
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
from typing import Any

from stacks.home import environment

LIMIT = 100_000
STAGES = ("typing", "validate", "split", "derive")


def text_cells(raw: Any) -> Any:
    """The same rows as a CSV would hold them: text, and None where a value is missing."""
    import pandas as pd

    cells = {name: [None if v != v else repr(v) for v in raw[name].tolist()] for name in raw}
    return pd.DataFrame(cells, dtype=object)


def stages(raw: Any) -> dict[str, float]:
    """Seconds of each stage on raw rows."""
    from bentos.features import derived_columns
    from models.config import load_model
    from steps.rows import typed_rows
    from steps.split import split_frame
    from steps.validate import validate_frame

    config = load_model("heart_disease").config
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - started
        return result

    frame = timed("typing", lambda: typed_rows(config, [raw]).frame)
    report = timed("validate", lambda: validate_frame(config, frame, frame.head(20_000)))
    parts = timed("split", lambda: split_frame(config, frame))
    columns = derived_columns(config).fit(parts.train)
    timed("derive", lambda: [columns.transform(side) for side in (parts.train, parts.test)])
    if report.failed():
        raise RuntimeError(f"the made-up rows failed {[check.key for check in report.failed()]}")
    return seconds


def main() -> int:
    """Measure, print, and return 1 when the rate is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="write a cProfile of one more round on text here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(environment(Path(home)) | {"GAUNTLET_SECRET": "benchmark"})
        from steps.generators import GENERATORS

        made = GENERATORS["heart_disease"].make(options.rows, 1, {})
        kinds = {"text": text_cells(made), "numbers": made}
        stages(made.head(2_000))  # imports
        rounds = {kind: [stages(raw) for _ in range(options.rounds)] for kind, raw in kinds.items()}
        if options.profile:
            profiler = cProfile.Profile()
            profiler.runcall(stages, kinds["text"])
            profiler.dump_stats(options.profile)
    figures: dict[str, Any] = {"rows": options.rows, "rounds": options.rounds, "limit": LIMIT}
    print(f"{options.rows:,} rows, medians of {options.rounds} rounds, seconds\n")
    print(f"{'cells':<10}" + "".join(f"{stage:>10}" for stage in STAGES) + f"{'all':>10}{'rows/s':>12}")
    for kind, measured in rounds.items():
        medians = {stage: statistics.median(m[stage] for m in measured) for stage in STAGES}
        total = statistics.median(sum(m.values()) for m in measured)
        rate = round(options.rows / total)
        figures[kind] = {
            **{k: round(v, 3) for k, v in medians.items()},
            "all": round(total, 3),
            "rows_per_second": rate,
        }
        print(f"{kind:<10}" + "".join(f"{medians[stage]:>10.2f}" for stage in STAGES) + f"{total:>10.2f}{rate:>12,}")
    met = all(figures[kind]["rows_per_second"] >= LIMIT for kind in kinds)
    print(f"\nlimit {LIMIT:,} rows/s: {'met' if met else 'MISSED'}")
    print(json.dumps({"benchmark": "prepare", **figures, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
