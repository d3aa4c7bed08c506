"""Small models and tables that the tests of the data steps share."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.config import Layer, ModelConfig, read_yaml, resolve

BASE = Path(__file__).parents[2] / "models" / "base.yaml"
SECRETS = ("jane.doe@example.org", "Zyxwvut", "4711-secret")


def make_config(path: Path | str = "data.csv", **changes: Any) -> ModelConfig:
    """A model on a CSV with a number, a whole number, a category, a boolean, a date and two classes."""
    values: dict[str, Any] = {
        "name": "tiny",
        "target": {"column": "y", "labels": ["no", "yes"]},
        "sources": [
            {"name": "file", "kind": "csv", "path": str(path), "fetch": "the lab's share, file tiny.csv"},
            {"name": "made_up", "kind": "synthetic", "generator": "heart_disease", "rows": 10},
        ],
        "columns": {
            "size": {"type": "number", "range": [0, 100], "missing": 0.2},
            "steps": {"type": "integer"},
            "colour": {"type": "category", "categories": ["red", "green", "blue"]},
            "member": {"type": "boolean"},
            "when": {"type": "datetime"},
        },
    }
    return resolve([Layer("base", read_yaml(BASE)), Layer("tiny", {**values, **changes})]).config


def make_table(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Rows for `make_config`, as a person would write them into a CSV."""
    rng = np.random.default_rng(seed)
    size = np.round(rng.uniform(1, 99, rows), 3)
    return pd.DataFrame(
        {
            "size": size,
            "steps": rng.integers(0, 1000, rows),
            "colour": rng.choice(["red", "green", "blue"], rows),
            "member": rng.choice(["yes", "no"], rows),
            "when": pd.date_range("2024-01-01", periods=rows, freq="5h").strftime("%Y-%m-%d %H:%M:%S"),
            "y": np.where(size + rng.normal(0, 20, rows) > 50, "yes", "no"),
        }
    )


def write(folder: Path, table: pd.DataFrame, name: str = "data.csv", **keys: Any) -> Path:
    """Write a CSV and return its path."""
    path = folder / name
    table.to_csv(path, index=False, **keys)
    return path
