from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from steps.served_quality import ServedQuality, served_quality
from steps.window import Window
from tests.steps.learning import toy

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
CONFIG = toy(
    {
        "x": {"type": "number", "range": [-50, 50], "missing": 0.1},
        "word": {"type": "category", "categories": ["a", "b", "c"]},
        "aside": {"type": "number", "feature": False},
    }
)
SUMMARY = {"rows": 1_000, "columns": {"x": {"quantiles": {"0.25": -1.0, "0.75": 1.0}}}}


def window(rows: int = 300, **fields: Any) -> Window:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=rows), "word": rng.choice(np.array(["a", "b"], dtype=object), rows)})
    newest = np.datetime64((NOW - timedelta(hours=5)).replace(tzinfo=None), "ms")
    given: dict[str, Any] = {
        "inputs": frame,
        "ids": np.arange(rows).astype(str).astype(object),
        "at": np.full(rows, newest),
        "versions": np.ones(rows, dtype=np.int64),
        "scores": np.zeros((rows, 2)),
        "bad": np.zeros(rows, dtype=np.int64),
    }
    return Window(since=NOW - timedelta(days=7), until=NOW, **{**given, **fields})


def test_sound_rows_have_the_full_score() -> None:
    found = served_quality(CONFIG, window(), SUMMARY, volumes=(100, 150, 200))
    assert (found.score, found.failed, found.completeness, found.compliance) == (100.0, (), 1.0, 1.0)
    assert (found.volume, found.usual_volume, found.volume_ratio, found.hours_since_last) == (300, 150.0, 2.0, 5.0)
    assert [(c.column, c.completeness, c.in_range, c.outliers) for c in found.columns] == [
        ("x", 1.0, 1.0, 0.0),
        ("word", 1.0, 1.0, None),
    ]
    assert found == ServedQuality.model_validate_json(found.model_dump_json())


def test_faults_are_counted_where_they_are() -> None:
    broken = window()
    frame = broken.inputs.copy()
    frame.loc[:59, "x"] = np.nan
    frame.loc[60:71, "x"] = 99.0
    frame.loc[:29, "word"] = "d"
    found = served_quality(CONFIG, replace(broken, inputs=frame, bad=np.eye(1, 300, dtype=np.int64)[0] * 6), SUMMARY)
    x, word = found.columns
    assert (x.completeness, x.in_range, x.outliers) == (0.8, 0.95, 0.05)
    assert (word.completeness, word.in_range) == (1.0, 0.9)
    assert (found.completeness, found.compliance) == (0.9, 0.99)
    assert {"missing:x", "range:x", "category:word"} <= set(found.failed)
    assert found.score is not None and found.score < 90
    assert (found.usual_volume, found.volume_ratio) == (None, None)
    assert found.notes == ("6 cells are not of their column's type",)


def test_a_column_that_vanished_costs_completeness_compliance_and_score() -> None:
    sound = window()
    found = served_quality(CONFIG, replace(sound, inputs=sound.inputs.drop(columns="word")), SUMMARY)
    assert (found.completeness, found.compliance, found.columns[1].completeness) == (0.5, 0.5, 0.0)
    assert "schema" in found.failed and found.score is not None and found.score < 100


def test_an_empty_window_has_no_score() -> None:
    found = served_quality(CONFIG, window(0), SUMMARY, volumes=(10,))
    assert (found.score, found.hours_since_last, found.volume, found.volume_ratio) == (None, None, 0, 0.0)
    assert found.notes == ("nothing was answered",)


def test_rows_that_a_window_was_widened_by_are_no_volume() -> None:
    sound = window()
    widened = replace(sound, at=np.concatenate([sound.at[:250] - np.timedelta64(30, "D"), sound.at[250:]]))
    assert served_quality(CONFIG, widened, SUMMARY).volume == 50


def test_rows_of_a_version_that_does_not_read_a_column_say_nothing_of_it() -> None:
    mixed = window()
    unread = np.arange(300) < 200
    lacking = replace(mixed, inputs=mixed.inputs.assign(word=mixed.inputs["word"].mask(unread)))
    found = served_quality(CONFIG, replace(lacking, unread={"word": unread}), SUMMARY)
    assert (found.score, found.completeness, found.compliance, found.columns[1].completeness) == (100.0, 1.0, 1.0, 1.0)
    assert "200 of 300 rows are of versions that do not read word" in found.notes
    assert served_quality(CONFIG, lacking, SUMMARY).completeness < 1
    none = replace(mixed, inputs=mixed.inputs.assign(word=None), unread={"word": np.ones(300, bool)})
    assert served_quality(CONFIG, none, SUMMARY).score == 100.0
