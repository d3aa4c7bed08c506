import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.outcomes import OutcomeItem, record
from bentos.schema import Schema
from models.config import Column
from steps.window import join, read_labels, read_window
from tests.steps.served import answers_of, batch_of, log_batches

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WEEK = timedelta(days=7)
SCHEMA = Schema(
    model="toy",
    task="classification",
    target="y",
    labels=("no", "yes"),
    inputs={"x": Column(type="number", missing=1.0), "word": Column(type="category", missing=1.0)},
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


def rows(count: int, first: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame(
        {"x": first + np.arange(count), "word": np.array(["a", "b"], dtype=object)[np.arange(count) % 2]}
    )


def scores(count: int) -> Any:
    share = np.linspace(0.1, 0.9, count)
    return np.column_stack([1 - share, share])


def week(ago: int, count: int, **fields: Any) -> Any:
    """A batch in the middle of the week that began `ago` + 1 weeks before NOW; x begins at 1,000 a week ago."""
    frame = rows(count, first=1_000.0 * ago)
    return batch_of(SCHEMA, frame, answers_of(SCHEMA, scores(count)), NOW - ago * WEEK - WEEK / 2, **fields)


def test_a_window_holds_what_was_answered_in_it(url: str) -> None:
    log_batches(url, [week(1, 30), week(0, 20), week(0, 5, variant="shadow"), week(0, 7, model="other")])
    window = read_window(url, SCHEMA, NOW, WEEK, least=10)
    assert (window.rows, window.widened, window.since, window.notes()) == (20, 0, NOW - WEEK, ())
    assert window.inputs["x"].tolist() == list(range(20)) and set(window.inputs["word"]) == {"a", "b"}
    assert np.allclose(window.scores, scores(20)) and len(set(window.ids)) == 20
    assert set(window.at) == {np.datetime64((NOW - WEEK / 2).replace(tzinfo=None), "ms")}
    assert window.of_version(1).tolist() == list(range(20)) and window.of_version(2).tolist() == []


def test_a_small_window_is_widened_to_the_newest_rows(url: str) -> None:
    log_batches(url, [week(ago, 20) for ago in range(6)])
    window = read_window(url, SCHEMA, NOW, WEEK, least=50)
    assert (window.rows, window.widened) == (50, 30)
    assert window.inputs["x"].tolist() == [*range(2_010, 2_020), *range(1_000, 1_020), *range(20)]
    assert window.notes() == ("30 of 50 rows are older: the window was widened",)


def test_a_window_is_not_widened_for_ever(url: str) -> None:
    log_batches(url, [week(ago, 20) for ago in (0, 3, 9)])
    window = read_window(url, SCHEMA, NOW, WEEK, least=50, longest=4 * WEEK)
    assert (window.rows, window.widened) == (40, 20)


def test_an_empty_window_says_so(url: str) -> None:
    window = read_window(url, SCHEMA, NOW, WEEK)
    assert (window.rows, window.scores.shape, window.notes()) == (0, (0, 2), ("nothing was answered",))
    assert list(window.inputs.columns) == ["x", "word"]
    assert len(read_labels(url, SCHEMA, window, NOW).rows) == 0


def test_a_clock_that_went_back_is_noticed(url: str) -> None:
    ahead = batch_of(SCHEMA, rows(5), answers_of(SCHEMA, scores(5)), datetime.now(UTC) + timedelta(days=1))
    log_batches(url, [week(0, 20), ahead])
    window = read_window(url, SCHEMA, NOW, WEEK, least=10)
    assert (window.rows, window.later) == (20, 5)
    assert "5 answers are dated in the future; was a clock set back?" in window.notes()


def test_what_is_answered_while_a_look_lasts_is_no_sign_of_a_wrong_clock(url: str) -> None:
    began = datetime.now(UTC) - timedelta(minutes=20)
    since = batch_of(SCHEMA, rows(5), answers_of(SCHEMA, scores(5)), began + timedelta(minutes=1))
    log_batches(url, [since])
    window = read_window(url, SCHEMA, began, WEEK, least=1)
    assert (window.rows, window.later, window.notes()) == (0, 0, ("nothing was answered",))


def test_a_column_that_no_row_has_is_left_out(url: str) -> None:
    frame = rows(20).drop(columns="word")
    log_batches(url, [batch_of(SCHEMA, frame, answers_of(SCHEMA, scores(20)), NOW - WEEK / 2)])
    assert list(read_window(url, SCHEMA, NOW, WEEK, least=10).inputs.columns) == ["x"]


def test_scores_of_a_version_with_other_labels_are_not_whole(url: str) -> None:
    log_batches(url, [week(0, 20), batch_of(SCHEMA, rows(3), [{"prediction": "maybe"}] * 3, NOW - WEEK / 3, version=2)])
    window = read_window(url, SCHEMA, NOW, WEEK, least=10)
    assert window.rows == 23 and len(window.of_version(1)) == 20 and len(window.of_version(2)) == 0


@pytest.mark.parametrize(("now", "length"), [(datetime(2026, 11, 21), WEEK), (NOW, timedelta(0))])
def test_a_moment_without_zone_or_a_span_without_length_is_refused(url: str, now: datetime, length: timedelta) -> None:
    with pytest.raises(ValueError, match="a window ends at a moment with a time zone"):
        read_window(url, SCHEMA, now, length)


def test_outcomes_join_the_window_of_their_prediction_however_late(url: str) -> None:
    log_batches(url, [week(1, 5), week(0, 20)])
    window, before = (read_window(url, SCHEMA, moment, WEEK, least=1) for moment in (NOW, NOW - WEEK))
    late = (NOW + 10 * WEEK).timestamp()
    told = [*zip(window.ids[:4], ["yes", "no", "no", "yes"], strict=True), (before.ids[0], "no")]
    record(url, [OutcomeItem(prediction_id=i, outcome=o) for i, o in told], late)
    assert len(read_labels(url, SCHEMA, window, NOW).rows) == 0 and read_labels(url, SCHEMA, window, NOW).later == 4
    labelled = read_labels(url, SCHEMA, window, NOW + 11 * WEEK)
    assert labelled.rows.tolist() == [0, 1, 2, 3] and labelled.truth.tolist() == ["yes", "no", "no", "yes"]
    assert read_labels(url, SCHEMA, before, NOW + 11 * WEEK).rows.tolist() == [0]


def test_of_two_outcomes_the_first_counts_and_future_and_unfit_ones_are_counted(url: str) -> None:
    log_batches(url, [week(0, 20)])
    window = read_window(url, SCHEMA, NOW, WEEK, least=1)
    moment = NOW.timestamp() - 60
    items = [(0, "yes", None), (0, "no", None), (1, "perhaps", None), (2, "yes", NOW + WEEK)]
    for row, outcome, at in items:
        record(url, [OutcomeItem(prediction_id=window.ids[row], outcome=outcome, at=at)], moment)
    labelled = read_labels(url, SCHEMA, window, NOW)
    assert (labelled.rows.tolist(), labelled.truth.tolist()) == ([0], ["yes"])
    assert (labelled.contradicted, labelled.later, labelled.unfit) == (1, 1, 1)
    assert join(SCHEMA, window, (), NOW).rows.tolist() == []


def test_what_another_version_does_not_read_is_not_missing(url: str) -> None:
    """v1 read x alone; v2, the champion, reads a word as well, which its newest batch lacks."""
    old = batch_of(SCHEMA, rows(30).drop(columns="word"), answers_of(SCHEMA, scores(30)), NOW - WEEK / 2)
    new = batch_of(SCHEMA, rows(20), answers_of(SCHEMA, scores(20)), NOW - WEEK / 4, version=2)
    lost = batch_of(SCHEMA, rows(10).drop(columns="word"), answers_of(SCHEMA, scores(10)), NOW - WEEK / 8, version=2)
    log_batches(url, [old])
    before = read_window(url, SCHEMA, NOW, WEEK, least=10, version=2)
    assert before.inputs["word"].isna().all() and before.unread["word"].all(), "v2 has answered nothing yet"
    log_batches(url, [new, lost])
    window = read_window(url, SCHEMA, NOW, WEEK, least=10, version=2)
    assert window.unread.keys() == {"word"} and window.unread["word"].tolist() == [True] * 30 + [False] * 30
    assert "30 of 60 rows are of versions that do not read word" in window.notes()
    assert window.take(window.of_version(2)).unread == {}
    assert read_window(url, SCHEMA, NOW, WEEK / 3, least=10, version=2).unread == {}


def test_untyped_cells_of_rows_that_were_cut_away_do_not_count(url: str) -> None:
    bad = week(1, 40)
    content = json.loads(bad.content)
    content["inputs"] = [["no number", word] for _, word in content["inputs"][:20]] + content["inputs"][20:]
    log_batches(url, [replace(bad, content=json.dumps(content).encode()), week(0, 20)])
    assert read_window(url, SCHEMA, NOW, WEEK, least=40).untyped == 0
    assert read_window(url, SCHEMA, NOW, WEEK, least=45).untyped == 5
    assert read_window(url, SCHEMA, NOW, WEEK, least=60).untyped == 20
