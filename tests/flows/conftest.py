"""A small model of our own, in a folder of its own, and ways to run the command on it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from stacks.home import environment
from stacks.orchestrator.server import _spawn

TOY = {
    "name": "toy",
    "metric": "roc_auc",
    "target": {"column": "ill", "labels": ["no", "yes"]},
    "sources": [{"name": "file", "kind": "csv", "path": "toy.csv"}],
    "columns": {
        "age": {"type": "integer", "range": [0, 120]},
        "pressure": {"type": "number", "range": [50, 250], "missing": 0.3},
        "ward": {"type": "category", "categories": ["a", "b", "c"]},
    },
    # No busy machine ends the search or fails the gate.
    "tuning": {
        "trials": 2,
        "seconds": 100_000,
        "candidates": {"logistic_regression": {"C": {"loguniform": [0.1, 10]}}},
    },
    "gates": {"p95_ms": {"max": 100_000, "blocking": False}},
}


def toy_frame(rows: int = 240, seed: int = 3) -> pd.DataFrame:
    """Rows whose answer follows age and pressure, with noise."""
    draw = np.random.default_rng(seed)
    age = draw.integers(20, 90, rows)
    pressure = np.round(draw.normal(120, 15, rows), 1)
    odds = (age - 55) / 10 + (pressure - 120) / 12 + draw.normal(0, 1, rows)
    frame = pd.DataFrame({"age": age, "pressure": pressure, "ward": draw.choice(["a", "b", "c"], rows)})
    frame.loc[draw.random(rows) < 0.1, "pressure"] = np.nan
    frame["ill"] = np.where(odds > 0, "yes", "no")
    return frame


@dataclass(frozen=True)
class Done:
    """A finished command: its exit code, its JSON (None where it printed none), what it printed, stderr alone."""

    code: int
    json: dict[str, Any] | None
    printed: str
    stderr: str = ""


@dataclass(frozen=True)
class Place:
    """A home, a folder of YAMLs and a folder of data, all of one test module."""

    home: Path
    models: Path
    data: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GAUNTLET_", "PREFECT_", "ZENML_", "MLFLOW_"))}
        own = {"GAUNTLET_MODELS": str(self.models), "GAUNTLET_DATA": str(self.data), "GAUNTLET_SECRET": "test"}
        return {**kept, **environment(self.home), **own}

    def gauntlet(self, *arguments: str, code: Path | None = None, **variables: str) -> Done:
        """Run the real command in a process of its own, as a user does; `code` is another copy of this clone."""
        command = [sys.executable, "-m", "flows", *arguments, "--json"]
        done = subprocess.run(command, env={**self.env, **variables}, capture_output=True, text=True, cwd=code)
        last = done.stdout.strip().splitlines()[-1:] or [""]
        parsed = json.loads(last[0]) if last[0].startswith("{") else None
        return Done(done.returncode, parsed, done.stdout + done.stderr, done.stderr)

    def write(self, **changes: Any) -> None:
        """Write toy.yaml with top-level keys changed."""
        (self.models / "toy.yaml").write_text(yaml.safe_dump({**TOY, **changes}, sort_keys=False))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    made = Place(folder / "home", folder / "models", folder / "data")
    for path in (made.home, made.models, made.data):
        path.mkdir(parents=True)
    made.write()
    toy_frame().to_csv(made.data / "toy.csv", index=False)
    return made


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[None]:
    """The home's Prefect server for all commands of the module, each of which would start one of its own."""
    process = _spawn(place.home / "prefect")
    yield
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


Invoke = Callable[[Sequence[str]], Done]


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process (its tools are imported once), on the session's home."""
    from typer.testing import CliRunner

    from flows.command import app

    def run(arguments: Sequence[str]) -> Done:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        lines = result.stdout.strip().splitlines()
        parsed = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
        return Done(result.exit_code, parsed, result.output + result.stderr, result.stderr)

    return run
