"""What a Release was made of and for: counts and names for card and report, no value of a row."""

from typing import Final, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from bentos.release import Release
from models.config import ModelConfig
from models.errors import bounded
from models.judgement import Card

EVALUATION_FOLDER: Final = "evaluation"
MONITORING_FOLDER: Final = "monitoring"
DRIFT_PAGE: Final = "drift.html"
REPORT_PAGE: Final = "report.html"
EVALUATION: Final = "evaluation.json"
FACTS: Final = "facts.json"
MOST = 200
Role = Literal[
    "feature", "kept, no feature", "feature, sensitive", "sensitive, no feature", "personal: hashed, no feature"
]


class ColumnFact(BaseModel):
    """A raw column and what is done with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    type: str
    role: Role
    description: str


class Facts(BaseModel):
    """What a Release was made of and for.

    Attributes:
        model: Name of the model.
        description: Its YAML's.
        task: Classification or regression.
        target: The column that is predicted.
        family: Family of the estimator.
        params: What tuning chose for it.
        trials: Configurations that tuning tried.
        seed: Of split, tuning and fit.
        split: How test rows were chosen.
        train_rows: Rows that it was fitted on.
        test_rows: Rows that it was judged on.
        classes: Class to its training and its test rows, the 200 first; empty in a regression.
        columns: The raw columns, the 200 first.
        column_count: How many there are.
        card: Intended use, limits and owners, as people wrote them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    description: str
    task: str
    target: str
    family: str
    params: dict[str, str | int | float | bool | None]
    trials: int
    seed: int
    split: str
    train_rows: int
    test_rows: int
    classes: dict[str, tuple[int, int]]
    columns: tuple[ColumnFact, ...]
    column_count: int
    card: Card


def facts_of(release: Release, test: pd.DataFrame) -> Facts:
    """The facts of a Release that was judged on these typed test rows."""
    config, training = release.config, release.training
    return Facts(
        model=config.name,
        description=config.description,
        task=config.task,
        target=config.target.column,
        family=training.family,
        params=release.evidence.get("tuning", {}).get("params", {}),
        trials=training.trials,
        seed=training.seed,
        split=_split(config),
        train_rows=training.rows,
        test_rows=len(test),
        classes=_classes(release, test),
        columns=tuple(_column(config, name) for name in list(config.columns)[:MOST]),
        column_count=len(config.columns),
        card=config.card,
    )


def _split(config: ModelConfig) -> str:
    split = config.split
    if split.held_out:
        return f"rows with {len(split.held_out)} held out values of '{split.column}' are the test set"
    by = f"{split.by} of '{split.column}'" if split.column else split.by
    return f"{split.test:.0%} test rows, chosen by {by}"


def _classes(release: Release, test: pd.DataFrame) -> dict[str, tuple[int, int]]:
    target = release.schema.target
    trained = release.reference_summary["columns"][target].get("categories", {})
    tested = test[target].value_counts()
    return {
        label: (int(trained.get(label, 0)), int(tested.get(label, 0))) for label in list(release.schema.labels)[:MOST]
    }


def _column(config: ModelConfig, name: str) -> ColumnFact:
    column = config.columns[name]
    role: Role = "feature" if name in config.input_names() else "kept, no feature"
    if column.sensitive:
        role = "feature, sensitive" if role == "feature" else "sensitive, no feature"
    if column.personal:
        role = "personal: hashed, no feature"
    return ColumnFact(name=name, type=column.type, role=role, description=bounded(column.description, 200))
