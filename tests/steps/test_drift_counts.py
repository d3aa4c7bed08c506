"""What the drift of issue 6 is counted by: planted drift that is found, and weeks without drift that stay quiet."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from bentos.schema import schema_of
from steps.dataset_drift import dataset_drift
from steps.window import Window, read_window
from tests.steps.planted import fresh, model, moved, reference, strength_for
from tests.steps.served import answers_of, batch_of, log_batches

MODELS = ("heart_disease", "obesity", "obesity_habits", "personality", "pipeline_errors")
START = datetime(2026, 1, 5, tzinfo=UTC)
WEEK = timedelta(days=7)
WEEKS, ROWS = 20, 200
TRIALS = 100


@pytest.mark.prove
def test_planted_drift_in_one_column_of_13_is_found_within_a_window(proof: Callable[[str, object, str], None]) -> None:
    name, rng = "heart_disease", np.random.default_rng(6)
    config = model(name)
    columns = config.input_names()
    assert len(columns) == 13
    found = others = 0
    for trial in range(TRIALS):
        column, distance = columns[trial % 13], rng.uniform(0.12, 0.2)
        window = fresh(name, 500, 50_000 + trial)
        changed = moved(window[column], strength_for(name, column, distance), trial)
        drifted = dataset_drift(config, reference(name), window.assign(**{column: changed})).drifted_columns
        found += column in drifted
        others += any(other != column for other in drifted)
    line = "drift of Jensen-Shannon 0.12 to 0.2 in one column of 13, windows of 500 rows: found, at least 95 of 100"
    proof(line, TRIALS, f"{found} found; another column named in {others} windows")
    assert found >= 95 and others <= 5


def _weeks(name: str, url: str) -> Iterator[Window]:
    """Twenty weekly windows over a log of 200 rows a week, from the week on that has 500 behind it."""
    schema = schema_of(model(name), reference(name))
    inputs = fresh(name, ROWS * (WEEKS + 2), 60_000 + MODELS.index(name))[list(schema.inputs)]
    answers = answers_of(schema, np.full((ROWS, len(schema.labels)), 1 / len(schema.labels)))
    batches = [inputs.iloc[start : start + ROWS].reset_index(drop=True) for start in range(0, len(inputs), ROWS)]
    moments = [START + (week + 0.5) * WEEK for week in range(len(batches))]
    log_batches(url, [batch_of(schema, rows, answers, at) for rows, at in zip(batches, moments, strict=True)])
    for week in range(3, WEEKS + 3):
        yield read_window(url, schema, START + week * WEEK, WEEK)


@pytest.mark.prove
def test_weeks_without_drift_raise_no_alarm(tmp_path: Path, proof: Callable[[str, object, str], None]) -> None:
    alarms, weeks = [], 0
    for name in MODELS:
        for window in _weeks(name, f"sqlite:///{tmp_path / name}.db"):
            assert (window.rows, window.widened) == (500, 300)
            drift = dataset_drift(model(name), reference(name), window.inputs)
            assert drift.judged
            alarms += [(name, *drift.drifted_columns)] * bool(drift.drifted_columns)
            weeks += 1
    assert weeks == 100
    line = "no drift, 200 rows a week, five models: weeks with any column named, at most 5 of 100"
    proof(line, weeks, f"{len(alarms)} named one")
    assert len(alarms) <= 5, alarms
