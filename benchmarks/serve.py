"""The service against `mlflow models serve`, and against a BentoML endpoint that only echoes, by one load tool.

`python -m benchmarks.serve [--only PART]... [--seconds N] [--rounds N] [--quick]` trains `heart_disease` (XGBoost;
forest and linear beside it), starts the servers, two workers each, prints a table and, as its last line, one JSON
object. Ours asks for a key, validates, logs durably and counts; the others do none of it. Rounds are interleaved and
medians count. The part `hundred` has a hundred Releases served by one service that follows the ledger.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import _servers as servers
from benchmarks._load import Ask, Load, keep_pace, percentile, require_wrk, saturate, zipf
from benchmarks._servers import Server
from models.errors import GauntletError, WorkError
from stacks.home import environment

if TYPE_CHECKING:
    from models.config import Family

FIRST: "Family" = "xgboost"
CONNECTIONS = 16
USERS = 150
BATCH_ROWS = 10_000
TOP = 5
LOADED_SECONDS = 120.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        seconds: Of one round of load.
        rounds: Of each comparison.
        users_seconds: How long the users stay.
        releases: In the following service.
        resident: Of them in memory.
    """

    seconds: float = 5.0
    rounds: int = 5
    users_seconds: float = 60.0
    releases: int = 100
    resident: int = 20


QUICK = Sizes(seconds=1.0, rounds=1, users_seconds=5.0, releases=8, resident=2)


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        what: What was measured.
        ours: The service's figure.
        other: The figure that it is compared with, where there is one.
        limit: Of ours divided by the other's, or of ours; None where the line only informs.
        at_least: Whether it is a lower limit.
    """

    what: str
    ours: float
    other: float | None = None
    limit: float | None = None
    at_least: bool = True

    @property
    def value(self) -> float:
        """What the limit is for."""
        return self.ours if self.other is None else self.ours / self.other

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def records_of(row: Mapping[str, Any]) -> Ask:
    """A row as MLflow is asked about it."""
    return Ask.of("/invocations", {"dataframe_records": [row]})


@dataclass(frozen=True)
class Pair:
    """Both servers of one Release, and what they are asked.

    Attributes:
        family: Of the Release.
        ours: The service.
        mlflow: MLflow's.
        rows: Some rows, ready for JSON.
        many: More of them, for a batch.
        sizes: How much to measure.
        folder: For what more is started.
        progress: Where to show what is being done.
    """

    family: "Family"
    ours: Server
    mlflow: Server
    rows: Sequence[Mapping[str, Any]]
    many: Callable[[int], Sequence[Mapping[str, Any]]]
    sizes: Sizes
    folder: Path
    progress: Progress

    def plain(self) -> list[Ask]:
        """What the service is asked, a row a request."""
        return [Ask.of("/predict", {"features": row}) for row in self.rows]

    def explained(self) -> list[Ask]:
        """The same with the largest effects."""
        return [Ask.of("/predict", {"features": row, "explain": TOP}) for row in self.rows]

    def records(self) -> list[Ask]:
        """What MLflow is asked."""
        return [records_of(row) for row in self.rows]

    def in_turn(self, title: str, ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
        """Medians of what the ways give, each taken once a round, after one round that does not count."""
        figures: dict[str, list[float]] = {name: [] for name in ways}
        with _bar(self.progress, title, (1 + rounds) * len(ways)) as done:
            for _ in range(1 + rounds):
                for name, way in ways.items():
                    figures[name].append(way())
                    done()
        return {name: statistics.median(each[1:]) for name, each in figures.items()}

    def rate(self, server: Server, asks: Sequence[Ask]) -> Callable[[], float]:
        """A way to tell how many requests a second a server answers."""
        return lambda: self.load(server, asks, CONNECTIONS).rate

    def load(self, server: Server, asks: Sequence[Ask], connections: int) -> Load:
        """A round of load."""
        return saturate(server.port, asks, connections=connections, seconds=self.sizes.seconds, key=server.key)


def singles(pair: Pair) -> list[Row]:
    """Single rows, plain and explained, as many a second as some connections can have answered."""
    with servers.echo(pair.folder / "echo") as echo:
        ways = {
            "ours": pair.rate(pair.ours, pair.plain()),
            "explained": pair.rate(pair.ours, pair.explained()),
            "mlflow": pair.rate(pair.mlflow, pair.records()),
            "echo": pair.rate(echo, pair.plain()),
        }
        rate = pair.in_turn(f"{pair.family}: singles", ways, pair.sizes.rounds)
    # The figures are promised for one family; the others stand beside it.
    promised = pair.family == FIRST
    return [
        Row(f"{pair.family}: singles/s, MLflow", rate["ours"], rate["mlflow"], 4.0 if promised else None),
        Row(f"{pair.family}: singles/s, echo", rate["ours"], rate["echo"], 0.65 if promised else None),
        Row(
            f"{pair.family}: top {TOP} effects/s, MLflow", rate["explained"], rate["mlflow"], 2.4 if promised else None
        ),
    ]


def users(pair: Pair) -> list[Row]:
    """Users who ask once a second each, at random times."""
    with _bar(pair.progress, f"{USERS} users for {pair.sizes.users_seconds:.0f} s", 1) as done:
        seconds, key = pair.sizes.users_seconds, pair.ours.key
        load = keep_pace(pair.ours.port, pair.plain(), users=USERS, rate=1.0, seconds=seconds, key=key)
        done()
    return [
        Row(f"{USERS} users: p95, ms", load.p95_ms, limit=25.0, at_least=False),
        Row(f"{USERS} users: errors in {load.requests:,}", load.errors, limit=0, at_least=False),
    ]


def saturated(pair: Pair) -> list[Row]:
    """Connections that never rest."""
    loads: dict[str, list[Load]] = {"ours": [], "mlflow": []}
    with _bar(pair.progress, f"{USERS} connections", 2 * pair.sizes.rounds) as done:
        for _ in range(pair.sizes.rounds):
            for name, server, asks in (
                ("ours", pair.ours, pair.plain()),
                ("mlflow", pair.mlflow, pair.records()),
            ):
                loads[name].append(pair.load(server, asks, USERS))
                done()
    p95 = {name: statistics.median(load.p95_ms for load in each) for name, each in loads.items()}
    errors = {name: sum(load.errors for load in each) for name, each in loads.items()}
    return [
        Row(f"{USERS} connections: p95, MLflow, ms", p95["ours"], p95["mlflow"], 0.5, at_least=False),
        Row(f"{USERS} connections: errors", errors["ours"], limit=0, at_least=False),
        Row(f"{USERS} connections: MLflow's errors", errors["mlflow"]),
    ]


def batch(pair: Pair) -> list[Row]:
    """Many rows in one request."""
    rows = pair.many(BATCH_ROWS)
    ours = json.dumps({"instances": rows}).encode()
    records = json.dumps({"dataframe_records": rows}).encode()
    ways = {
        "ours": lambda: len(rows) / pair.ours.seconds_of("/predict/batch", ours),
        "mlflow": lambda: len(rows) / pair.mlflow.seconds_of("/invocations", records),
    }
    rate = pair.in_turn("batches", ways, 2 * pair.sizes.rounds)
    return [Row(f"batches of {len(rows):,}: rows/s, MLflow", rate["ours"], rate["mlflow"], 1.0)]


PARTS: Mapping[str, Callable[[Pair], list[Row]]] = {
    "singles": singles,
    "users": users,
    "saturated": saturated,
    "batch": batch,
}


def compare(
    family: "Family", parts: Sequence[Callable[[Pair], list[Row]]], sizes: Sizes, folder: Path, progress: Progress
) -> list[Row]:
    """Start both servers on a champion of one family and measure."""
    with _bar(progress, f"{family}: Release, Bento, servers", 3) as done:
        release = servers.learn(family).release(folder / "release")
        done()
        servers.crown(release, folder, folder / "bentos")
        done()
        with servers.packaged(folder / "bentos", folder / "home") as ours, servers.mlflow(folder) as mlflow:
            done()
            rows = [row.inputs for row in release.golden]
            for server, ask in ((ours, Ask.of("/predict", {"features": rows[0]})), (mlflow, records_of(rows[0]))):
                server.warm(ask.path, ask.body.encode())
            pair = Pair(family, ours, mlflow, rows, lambda n: servers.many_rows(release, n), sizes, folder, progress)
            return [row for part in parts for row in part(pair)]


def hundred(sizes: Sizes, folder: Path, progress: Progress) -> list[Row]:
    """Many models of 200 trees in one service: memory, and the first answer of one that was not in memory."""
    learned = servers.learn(FIRST)
    names = [f"heart_{number:03d}" for number in range(sizes.releases)]
    folder.mkdir()
    with _bar(progress, "hundred: Releases", len(names)) as done:
        url = servers.promote_all(learned, names, folder, done)
    rows = [row.inputs for row in learned.release(folder / "sample").golden]
    body = json.dumps({"features": rows[0]}).encode()
    random = Random(7)
    draws = zipf(random, len(names), 5_000)
    asks = [Ask.of(_path(names[rank]), {"features": random.choice(rows)}) for rank in draws]
    with (
        servers.following(url, folder / "home", sizes.resident) as ours,
        _bar(progress, "hundred: asked", 2 * len(names) + 1) as done,
    ):
        for name in names:
            _await_answer(ours, _path(name), body)
            done()
        load = saturate(ours.port, asks, connections=8, seconds=6 * sizes.seconds, key=ours.key)
        done()
        # The most wanted come last: until then those before them have taken their places in memory.
        cold: list[float] = []
        for name in reversed(names):
            cold.append(1_000 * ours.seconds_of(_path(name), body))
            done()
        memory = ours.memory_mib()
    said = f"{len(names)} models, {sizes.resident} resident"
    return [
        Row(f"{said}: MiB over all processes", memory, limit=1.5 * 1024, at_least=False),
        Row(f"{said}: cold first answer, worst, ms", max(cold), limit=500, at_least=False),
        Row(f"{said}: cold first answer, p50, ms", percentile(cold, 0.5)),
        Row(f"{said}: errors in {load.requests:,}", load.errors, limit=0, at_least=False),
        Row(f"{said}: answers/s by Zipf's law", load.rate),
    ]


def measure(only: Sequence[str], sizes: Sizes, folder: Path, progress: Progress) -> list[Row]:
    """The lines of the report, by part; those of all parts where `only` is empty."""
    found: list[Row] = []
    chosen = [part for name, part in PARTS.items() if not only or name in only]
    for family in servers.PINNED:
        parts = chosen if family == FIRST else [singles] if not only or "families" in only else []
        if parts:
            found += compare(family, parts, sizes, folder / family, progress)
    if not only or "hundred" in only:
        found += hundred(sizes, folder / "hundred", progress)
    return found


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("figure", "ours", "other", "ratio", "limit", "met")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        limit = "" if row.limit is None else f"{'>=' if row.at_least else '<='} {row.limit:g}"
        other = ("", "") if row.other is None else (_figure(row.other), f"{row.value:.2f}")
        table.add_row(row.what, _figure(row.ours), *other, limit, {True: "yes", False: "NO", None: ""}[row.met])
    Console(width=110).print(table)


def main() -> int:
    """Measure, print, and return 1 when a figure is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", choices=[*PARTS, "families", "hundred"], default=[])
    parser.add_argument("--seconds", type=float, help="of one round of load")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="see that it runs: one second, one round, eight models")
    given = parser.parse_args()
    asked = {name: getattr(given, name) for name in ("seconds", "rounds") if getattr(given, name)}
    sizes = Sizes(**{**(asdict(QUICK) if given.quick else {}), **asked})
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        home = Path(folder)
        os.environ.update(environment(home / "state") | {"GAUNTLET_SECRET": "benchmark"})
        (home / "state" / "mlflow").mkdir(parents=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started goes then too
        try:
            require_wrk()
            with Progress(*columns, console=Console(stderr=True)) as progress:
                rows = measure(given.only, sizes, home, progress)
        except GauntletError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; what was started is gone", file=sys.stderr)
            return 130
    show(rows)
    told = [{**asdict(row), "value": round(row.value, 4), "met": row.met} for row in rows]
    print(json.dumps({"bench": "serve", **asdict(sizes), "rows": told}))
    return 0 if all(row.met is not False for row in rows) else 1


def _path(model: str) -> str:
    return f"/models/{model}/predict"


def _await_answer(server: Server, path: str, body: bytes) -> None:
    """Ask until there is an answer: models that are followed come one after the other.

    Raises:
        WorkError: There is none for two minutes.
    """
    deadline = time.monotonic() + LOADED_SECONDS
    while True:
        try:
            server.post(path, body)
        except WorkError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


@contextmanager
def _bar(progress: Progress, title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal while the block runs; what is given is to be called after each part of the work."""
    task = progress.add_task(title, total=total)
    yield lambda: progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
