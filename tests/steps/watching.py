"""A champion that is watched, what it answered at which time, and what turned out to be true."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bentos.outcomes import OutcomeItem, record
from bentos.release import write_release
from models.monitoring import CheckName
from stacks.findings import Finding
from steps.champion import Champion
from steps.holdout import draw_holdout
from steps.metrics import compute_metrics
from steps.monitor import Looked, run_checks
from steps.train import fit_family
from steps.watch import Watch
from tests.steps.learning import configured, rows_of
from tests.steps.planted import fresh
from tests.steps.served import answers_of, batch_of, log_batches

MODEL = "heart_disease"
TARGET = "num"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def trained(folder: Path, **keys: Any) -> Champion:
    """A logistic regression as v1, fitted on its training rows and judged on its test rows."""
    config, rows = configured(MODEL, **keys), rows_of(MODEL)
    release = write_release(
        folder,
        pipeline=fit_family(config, "logistic_regression", {"C": 0.5}, rows.train),
        config=config,
        train=rows.train,
        metrics={"roc_auc": 0.5},
        data_digest="d" * 64,
        trials=1,
        evidence={},
    )
    figures = compute_metrics(config, release.schema.labels, rows.test[TARGET].to_numpy(), release.answer(rows.test))
    return Champion(config, release, 1, metrics=figures, holdout=draw_holdout(release, rows.test))


def arrivals(rows: int = 700, seed: int = 1) -> pd.DataFrame:
    """Rows of the same making as the training rows, with their truth."""
    return fresh(MODEL, rows, seed)


def serve(url: str, champion: Champion, frame: pd.DataFrame, at: datetime = NOW - DAY / 2, version: int = 1) -> Any:
    """Have rows answered and logged at a time, in two batches; their ids."""
    schema, ids = champion.release.schema, []
    for part in (frame.iloc[: len(frame) // 2], frame.iloc[len(frame) // 2 :]):
        whole = part.assign(**{name: np.nan for name in schema.inputs if name not in part})
        answers = answers_of(schema, champion.release.answer(whole).probabilities)
        batch = batch_of(schema, part, answers, at, version=version)
        log_batches(url, [batch])
        ids += [f"{batch.id}-{row}" for row in range(len(part))]
    return np.array(ids, dtype=object)


def tell(url: str, ids: Any, truth: Any, at: datetime = NOW - DAY / 4, told: datetime | None = None) -> Any:
    """Say what was true of rows; `at` is when that came, `told` when it is said to have become known."""
    items = [OutcomeItem(prediction_id=i, outcome=t, at=told) for i, t in zip(ids, truth, strict=True)]
    return record(url, items, at.timestamp())


def look(url: str, champion: Champion, *checks: CheckName, window: str | None = "7d", at: datetime = NOW) -> Looked:
    """Look at it with some checks."""
    return run_checks(champion, Watch(checks=checks, window=window, at=at), url)


def found(url: str, champion: Champion, check: CheckName, **asked: Any) -> Finding:
    """What one check finds."""
    (finding,) = look(url, champion, check, **asked).findings
    return finding
