"""Log lines scored in batch: rows of pipeline_errors a second, by the Release itself and over HTTP.

`python -m benchmarks.logs [--rows N] [--rounds N] [--batch N]` prints a table and, as its last line, one JSON object. A
Release is trained on the synthetic logs (plain logistic regression, as the champion's family), then asked about logs
that it has not seen, in batches: `Release.answer` on a typed frame, and `/predict/batch` of a real `bentoml serve`,
from JSON body to JSON answer. A row is a whole log of about seventeen lines. Making the rows is not timed. Medians
count.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stacks.home import environment

LIMIT = 2_000
MODEL = "pipeline_errors"


def trained(folder: Path) -> Any:
    """A Release of the model's default family, fitted on its training rows."""
    from bentos.release import write_release
    from models.config import load_model
    from steps.families import plain_linear
    from steps.ingest import ingest_frame
    from steps.split import split_frame
    from steps.train import fit_family

    config = load_model(MODEL).config
    rows = split_frame(config, ingest_frame(config).frame).train
    pipeline = fit_family(config, plain_linear(config), {}, rows)
    return write_release(
        folder, pipeline=pipeline, config=config, train=rows, metrics={}, data_digest="0" * 64, trials=0, evidence={}
    )


def seconds_of(batches: Sequence[Any], ask: Callable[[Any], Any]) -> float:
    """How long it takes to have all batches answered, one after the other."""
    started = time.perf_counter()
    for batch in batches:
        ask(batch)
    return time.perf_counter() - started


def measure(rows: int, rounds: int, size: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each round, by way of asking; every round asks about other logs."""
    import pandas as pd

    from steps.build import build_bento, unpack
    from steps.generators import GENERATORS
    from steps.serve import serving

    release = trained(folder / "release")
    made = [GENERATORS[MODEL].make(rows, 1_000 + number, {}) for number in range(rounds + 1)]
    frames = [[frame.iloc[at : at + size] for at in range(0, rows, size)] for frame in made]
    bodies = [[[{"log_text": text} for text in part["log_text"]] for part in parts] for parts in frames]
    seconds_of(frames[-1], release.answer)
    figures = {"Release.answer": [seconds_of(parts, release.answer) for parts in frames[:-1]]}
    unpack(build_bento(folder / "release", MODEL, 1, {}, folder), folder / "bentos" / MODEL / "000001")
    with serving(f"{MODEL}:000001", folder / "bentos") as endpoint:
        seconds_of(bodies[-1], endpoint.predict_batch)
        figures["/predict/batch"] = [seconds_of(parts, endpoint.predict_batch) for parts in bodies[:-1]]
    lines = sum(text.count("\n") + 1 for text in pd.concat(made[:-1])["log_text"])
    figures["lines"] = [lines / rounds]
    return figures


def main() -> int:
    """Measure, print, and return 1 when a rate is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(environment(Path(home)) | {"GAUNTLET_SECRET": "benchmark"})
        measured = measure(options.rows, options.rounds, options.batch, Path(home))
    lines = measured.pop("lines")[0]
    rates: dict[str, int] = {}
    print(f"{options.rows:,} logs of {lines / options.rows:.1f} lines, in batches of {options.batch:,}; ", end="")
    print(f"medians of {options.rounds} rounds\n")
    print(f"{'asked by':<18}{'seconds':>10}{'logs/s':>12}{'lines/s':>12}")
    for way, rounds in measured.items():
        median = statistics.median(rounds)
        rates[way] = round(options.rows / median)
        print(f"{way:<18}{median:>10.2f}{rates[way]:>12,}{round(lines / median):>12,}")
    met = min(rates.values()) >= LIMIT
    print(f"\nlimit {LIMIT:,} logs/s: {'met' if met else 'MISSED'}")
    print(json.dumps({"benchmark": "logs", "rows": options.rows, "limit": LIMIT, "rows_per_second": rates, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
