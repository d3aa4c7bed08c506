"""Batch scoring: a million rows of heart_disease by `gauntlet predict`'s own way, logged durably, in one process.

`python -m benchmarks.batch [--rows N] [--rounds N] [--profile FILE]` makes a Release (XGBoost, fast path proven), a CSV
and a Parquet file, scores each into a file of the same kind with the prediction log in SQLite, and prints a table and,
as its last line, one JSON object. Median of the rounds; the limit is 20,000 rows a second.
"""

import argparse
import cProfile
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stacks.home import environment

LIMIT = 20_000
MODEL = "heart_disease"


def prepare(folder: Path, rows: int) -> None:
    """Make a champion and its input files."""
    import hashlib

    import pandas as pd

    from bentos.quick import EVIDENCE
    from bentos.release import write_release
    from bentos.schema import encode, labels_of
    from models.config import load_model
    from stacks.ledger import open_ledger
    from steps.families import build_pipeline, one_thread
    from steps.ingest import ingest_frame

    config = load_model(MODEL).config
    train = ingest_frame(config).frame
    labels = labels_of(config, train)
    pipeline = build_pipeline(config, "xgboost", {"n_estimators": 100, "max_depth": 4})
    with one_thread():
        pipeline.fit(train, encode(labels, train[config.target.column]).to_numpy())
    write_release(
        folder / "release",
        pipeline=pipeline,
        config=config,
        train=train,
        metrics={},
        data_digest="0" * 64,
        trials=0,
        evidence={EVIDENCE: {"used": True}},
    )
    manifest = hashlib.sha256((folder / "release" / "manifest.json").read_bytes()).hexdigest()
    place = {"release_uri": str(folder / "release"), "manifest_sha256": manifest}
    open_ledger().append("promote", MODEL, 1, payload=place)
    frame: pd.DataFrame = train[config.input_names()].sample(rows, replace=True, random_state=1)
    frame.insert(0, "patient", range(rows))
    frame.to_csv(folder / "in.csv", index=False)
    frame.to_parquet(folder / "in.parquet", index=False)


def measure(folder: Path, kind: str, profile: Path | None) -> dict[str, float]:
    """Score one file of a kind, once; seconds and rows a second."""
    from steps.batch import predict
    from steps.resume import Order

    order = Order(model=MODEL, input=str(folder / f"in.{kind}"), output=str(folder / f"out.{kind}"), keep=("patient",))
    watching = cProfile.Profile() if profile else nullcontext()
    cpu = time.process_time()
    with watching as watched:
        done = predict(order, force=True)
    if profile and watched:
        watched.dump_stats(profile)
    if done.logged != done.rows:
        raise SystemExit(f"{done.rows - done.logged} rows are not in the log")
    return {"seconds": done.seconds, "rows_per_second": done.rows_per_second, "cpu": time.process_time() - cpu}


def main() -> int:
    """Measure and print; 1 where the limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-batch-") as name:
        folder = Path(name)
        os.environ.update(environment(folder / "home"))
        prepare(folder, options.rows)
        view = Table(title=f"{options.rows:,} rows, logged; load average {os.getloadavg()[0]:.1f}", box=None)
        for column in ("input and output", "seconds", "of them CPU", "rows a second", "limit"):
            view.add_column(column, justify="right")
        figures = {}
        for kind in ("csv", "parquet"):
            rounds = [measure(folder, kind, options.profile) for _ in range(options.rounds)]
            told = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            figures[kind] = told
            view.add_row(
                kind, f"{told['seconds']:.1f}", f"{told['cpu']:.1f}", f"{told['rows_per_second']:,.0f}", f"{LIMIT:,}"
            )
        Console().print(view)
        met = all(told["rows_per_second"] >= LIMIT for told in figures.values())
        print(json.dumps({"rows": options.rows, **figures, "load": os.getloadavg()[0], "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
