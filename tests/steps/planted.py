"""Windows whose drift is known: one column moved so far that Evidently measures a given Jensen-Shannon distance."""

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from models.config import ModelConfig, SyntheticSource, load_model
from steps.generators import GENERATORS
from steps.ingest import ingest_frame
from steps.rows import typed_rows
from steps.split import split_frame

POPULATION = 40_000
STRENGTHS = np.linspace(0, 1, 41)


@lru_cache
def model(name: str) -> ModelConfig:
    """A shipped model."""
    return load_model(name).config


@lru_cache
def reference(name: str) -> pd.DataFrame:
    """Its training rows."""
    return split_frame(model(name), ingest_frame(model(name)).frame).train


def fresh(name: str, rows: int, seed: int, **knobs: float) -> pd.DataFrame:
    """Typed rows that its own generator makes, not among the training rows."""
    config = model(name)
    source = config.source()
    assert isinstance(source, SyntheticSource) and seed != source.seed
    return typed_rows(config, [GENERATORS[source.generator].make(rows, seed, knobs)]).frame


def moved(values: "pd.Series[Any]", strength: float, seed: int) -> "pd.Series[Any]":
    """A column that has drifted: a share `strength` of its numbers is a deviation larger, of its categories the rarest.

    Numbers stay whole, or on tenths; those of few values (counts, grades) move as categories do.
    """
    chosen = values.notna() & (np.random.default_rng(seed).random(len(values)) < strength)
    if values.dtype.kind == "f" and values.nunique() > 20:
        whole = bool((values.dropna() % 1 == 0).all())
        return values.where(~chosen, values + np.round(values.std(), 0 if whole else 1))
    rarest = values.value_counts().sort_index().sort_values(kind="stable").index[0]
    return values.where(~chosen, rarest)


def evidently_distance(old: "pd.Series[Any]", new: "pd.Series[Any]") -> float:
    """Evidently's own Jensen-Shannon distance, on the cells that it makes."""
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test
    from evidently.legacy.core import ColumnType

    kind = ColumnType.Numerical if old.dtype.kind == "f" else ColumnType.Categorical
    sides = [side.dropna().reset_index(drop=True) for side in (old, new)]
    return float(jensenshannon_stat_test(*sides, kind, 0.1).drift_score)


@lru_cache
def distances(name: str, column: str) -> "np.ndarray[Any, Any]":
    """Evidently's distance of a population of 40,000 rows from itself moved, by strength."""
    values = fresh(name, POPULATION, 999)[column]
    return np.array([evidently_distance(values, moved(values, strength, 0)) for strength in STRENGTHS])


def strength_for(name: str, column: str, distance: float) -> float:
    """By how much a column has to be moved to be so far away."""
    found = distances(name, column)
    assert found.max() > distance, f"{column} cannot be moved that far"
    after = int(np.argmax(found >= distance))
    share = (distance - found[after - 1]) / (found[after] - found[after - 1])
    return float(STRENGTHS[after - 1] + share * (STRENGTHS[after] - STRENGTHS[after - 1]))
