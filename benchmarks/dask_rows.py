"""Ten million rows on two Dask workers of 2 GiB each, where memory does not hold them.

`python -m benchmarks.dask_rows [--rows N] [--home DIR]` prints a table and, as its last line, one JSON object. Rows are
heart_disease's 13 findings, made seeded and partition by partition (Parquet, plain, about 1 GiB for ten million).
Three runs of the real command `gauntlet run`, each a process of its own: `compute: dask` on all rows; `compute: memory`
on all rows, which may take as much memory as both workers together (RLIMIT_DATA) and has to end with an error that says
so; and `compute: memory` on a tenth of the rows, in whose 95 % interval the metric of the first run has to lie. With
--rows below four million memory holds them all, and the second run is left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stacks.home import environment

MODEL, SEED = "patients", 11
PART_ROWS, WORKERS, LIMIT = 250_000, 2, 2 << 30
TOO_MANY = 4_000_000
METRIC = "roc_auc"


@dataclass(frozen=True)
class Ran:
    """A run of the command.

    Attributes:
        seconds: On the wall.
        peak: Most resident memory of the process that ran the steps, in bytes.
        workers: The most that any Dask worker had, in bytes; 0 without workers.
        result: Its JSON; empty where it failed.
        said: The end of what it said on stderr.
    """

    seconds: float
    peak: int
    workers: int
    result: Mapping[str, Any]
    said: str


def write_rows(folder: Path, rows: int) -> int:
    """Write seeded rows as partitions; how many bytes they take."""
    import numpy as np

    from steps.generators import heart_disease

    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        count = min(PART_ROWS, rows - start)
        frame = heart_disease.GENERATOR.make(count, SEED + number, {}).drop(columns="site").astype("float64")
        # What no linear model finds: one of two findings makes ill, both or none do not. The seed ends in 1: one that
        # ends in 0 is the seed without it, which is the generator's.
        ill = (frame["age"] > 53) != (frame["thalach"] < 135)
        drawn = np.random.default_rng([SEED, number, 1]).random(count)
        frame["num"] = (drawn < np.where(ill, 0.8, 0.2)).astype("float64")
        path = folder / f"rows-{number:05d}.parquet"
        frame.to_parquet(path, index=False, compression=None, use_dictionary=False)
    return sum(path.stat().st_size for path in folder.iterdir())


def write_model(folder: Path, data: Path, rows: int, sample: Path) -> None:
    """Write heart_disease's YAML with these sources, for XGBoost."""
    folder.mkdir(parents=True)
    model = yaml.safe_load((Path(__file__).parents[1] / "models" / "heart_disease.yaml").read_text(encoding="utf-8"))
    del model["columns"]["site"], model["evaluation"]
    known = model["tuning"]["candidates"]["xgboost"]
    sources = [
        {"name": name, "kind": "parquet", "path": f"{path}/"} for name, path in (("all", data), ("sample", sample))
    ]
    model |= {
        "name": MODEL,
        "compute": "dask",
        "search_rows": min(100_000, rows // 10),
        "sources": sources,
        "gates": {},
        "tuning": {"trials": 3, "folds": 3, "seconds": 3600, "candidates": {"xgboost": known}},
    }
    (folder / f"{MODEL}.yaml").write_text(yaml.safe_dump(model, sort_keys=False), encoding="utf-8")


def run(home: Path, limit: int | None, *words: str) -> Ran:
    """Run the command with at most `limit` bytes of data of its own."""
    env = os.environ | environment(home) | {"GAUNTLET_MODELS": str(home / "models"), "GAUNTLET_SECRET": "benchmark"}
    env |= {"GAUNTLET_DASK_WORKERS": str(WORKERS), "GAUNTLET_DASK_MEMORY": str(LIMIT)}
    env.pop("GAUNTLET_DASK", None)

    def bounded() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    begun = time.monotonic()
    command = [str(Path(sys.executable).parent / "gauntlet"), "run", MODEL, "--json", *words]
    with (home / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=said, text=True, preexec_fn=bounded, cwd=home
        )
        peaks = Peaks(process.pid)
        out, _ = process.communicate()
        peaks.end()
        said.seek(0)
        told = said.read()
    print(told[-4000:], file=sys.stderr)
    last = out.strip().splitlines()[-1:] or ["{}"]
    result = json.loads(last[0]) if last[0].startswith("{") else {}
    return Ran(time.monotonic() - begun, peaks.own, peaks.workers, result, told[-2_000:])


class Peaks:
    """The most resident memory of a process and its children but for Dask workers, and of any one of these."""

    def __init__(self, pid: int) -> None:
        """Look twice a second, in a thread."""
        self._pid, self._over = pid, threading.Event()
        self.own = self.workers = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            for is_worker, peak in self._each():
                if is_worker:
                    self.workers = max(self.workers, peak)
                else:
                    self.own = max(self.own, peak)

    def _each(self) -> Iterator[tuple[bool, int]]:
        import psutil

        try:
            tree = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
        except psutil.Error:
            return
        ours: set[int] = set()
        for process in tree:
            try:
                is_worker = "steps.cluster" in " ".join(process.cmdline()) or process.ppid() in ours
                ours |= {process.pid} if is_worker else set()
                yield is_worker, int(process.memory_info().rss)
            except psutil.Error:
                continue


def ended(ran: Ran) -> str:
    """How a run that failed ended, in a line."""
    lines = [line for line in ran.said.splitlines() if line.startswith("Error")]
    return lines[-1][:200] if lines else "failed"


def agrees(dask: Mapping[str, Any], sample: Mapping[str, Any]) -> bool:
    """Whether the metric of all rows lies in the interval that a sample gives in memory."""
    return bool(sample["interval"]["low"] <= dask["metrics"][METRIC] <= sample["interval"]["high"])


def with_interval(home: Path, ran: Ran) -> dict[str, Any]:
    """The JSON of a run, and the interval of its metric."""
    code = (
        "import sys, json; from stacks import runs; from steps.facts import EVALUATION, EVALUATION_FOLDER;"
        "read = runs.read_files(sys.argv[1], EVALUATION_FOLDER, EVALUATION)[EVALUATION];"
        "print(json.dumps(json.loads(read)['intervals'][sys.argv[2]]))"
    )
    words = [sys.executable, "-c", code, str(ran.result["mlflow_run_id"]), METRIC]
    env = os.environ | environment(home)
    told = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    return {**ran.result, "interval": json.loads(told.strip().splitlines()[-1])}


def main() -> int:
    """Measure, print, and return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--home", type=Path, default=None, help="an empty folder; a temporary one when left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.home) as place:
        figures = measure(Path(place), options.rows, options.rows // 10)
    print(json.dumps({"benchmark": "dask_rows", **figures}))
    return 0 if figures["met"] else 1


def measure(home: Path, rows: int, sample: int) -> dict[str, Any]:
    """The three runs, the last on `sample` rows: print the table; what it holds, and whether the limits are met."""
    size = write_rows(home / "all", rows)
    write_rows(home / "sample", sample)
    write_model(home / "models", home / "all", rows, home / "sample")
    print(f"{rows:,} rows in {size / 2**30:.2f} GiB of Parquet", file=sys.stderr)
    ran = {"dask": run(home, None, "--source", "all")}
    if rows >= TOO_MANY:
        ran["memory"] = run(home, WORKERS * LIMIT, "--source", "all", "--set", "compute=memory")
    ran["sample"] = run(home, None, "--source", "sample", "--set", "compute=memory")
    print("| run | seconds | largest worker, MiB | largest other process, MiB | roc_auc | interval |")
    print("|---|---|---|---|---|---|")
    told = {name: with_interval(home, one) if one.result.get("metrics") else {} for name, one in ran.items()}
    for name, one in ran.items():
        found = told[name]
        ends = f"{found['interval']['low']:.5f} to {found['interval']['high']:.5f}" if found else ended(one)
        value = f"{found['metrics'][METRIC]:.5f}" if found else "none"
        peaks = f"{one.workers / 2**20:,.0f} | {one.peak / 2**20:,.0f}"
        print(f"| {name} | {one.seconds:.0f} | {peaks} | {value} | {ends} |")
    both = bool(told["dask"] and told["sample"])
    met = both and agrees(told["dask"], told["sample"]) and ran["dask"].workers <= LIMIT
    if "memory" in ran:
        met = met and not told["memory"] and "do not fit into this process's memory" in ran["memory"].said
    figures = {
        name: {
            "seconds": one.seconds,
            "peak": one.peak,
            "workers": one.workers,
            METRIC: told[name]["metrics"][METRIC] if told[name] else None,
            "verdict": one.result.get("verdict"),
        }
        for name, one in ran.items()
    }
    return {"rows": rows, "bytes": size, **figures, "met": bool(met)}


if __name__ == "__main__":
    sys.exit(main())
