from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp, wasserstein_distance

from models.config import ModelConfig
from models.errors import ConfigError
from steps.dataset_drift import DatasetDrift, dataset_drift
from steps.drift import drift_score, tally
from steps.drift_page import drift_page
from steps.significance import departure, holm, resamples_for
from tests.steps.learning import toy
from tests.steps.planted import evidently_distance, fresh, model, moved, reference, strength_for

METHODS = ("jensenshannon", "wasserstein", "ks", "psi", "chisquare")
MODEL = "heart_disease"


def two(rows: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    words = rng.choice(np.array(["a", "b", "c"], dtype=object), rows)
    return pd.DataFrame({"x": rng.normal(shift, 1, rows), "word": words})


def config(**monitoring: Any) -> ModelConfig:
    return toy({"x": {"type": "number"}, "word": {"type": "category"}}, monitoring=monitoring)


def found(drift: DatasetDrift, column: str) -> Any:
    return next(c for c in drift.columns if c.column == column)


def test_distances_are_those_of_scipy() -> None:
    old, new = (
        pd.Series(np.random.default_rng(0).normal(size=900)),
        pd.Series(np.random.default_rng(1).normal(1, 2, 500)),
    )
    counts = tally("jensenshannon", old, new)
    p, q = counts.reference / 900, counts.window / 500
    assert len(p) == 10  # Sturges, of 500 rows
    assert drift_score("jensenshannon", old, new) == pytest.approx(jensenshannon(p, q), abs=1e-12)
    assert drift_score("ks", old, new) == pytest.approx(ks_2samp(old, new).statistic, abs=1e-12)
    moved_by = wasserstein_distance(old, new) / old.std(ddof=0)
    assert drift_score("wasserstein", old, new) == pytest.approx(moved_by, abs=1e-9)


def test_cramers_v_is_that_of_a_table_with_equal_sides() -> None:
    from scipy.stats.contingency import association

    old, new = (pd.Series(list("a" * a + "b" * (100 - a)), dtype=object) for a in (30, 55))
    table = np.array([[30, 70], [55, 45]])
    expected = association(table, method="cramer")
    assert drift_score("chisquare", old, new) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_evidently_measures_the_same_as_we_do(method: str) -> None:
    watched, old, window = config(drift=method), two(2_000, 1), two(500, 2, shift=0.3)
    old.loc[:99, "x"] = np.nan
    window.loc[100:, "word"] = "new"
    drift, page = dataset_drift(watched, old, window), drift_page(watched, old, window)
    assert page is not None and "<html" in page.html
    assert page.scores == pytest.approx({c.column: c.values.effect for c in drift.columns if c.values}, abs=1e-9)
    assert list(page.scores) == ["x", "word"]


@pytest.mark.parametrize("method", METHODS)
def test_a_moved_column_is_named_and_no_other(method: str) -> None:
    watched = config(drift=method)
    drift = dataset_drift(watched, two(3_000, 1), two(500, 2, shift=0.6))
    assert drift.judged and drift.drifted_columns == ("x",)
    assert found(drift, "word").method == ("jensenshannon" if method in ("ks", "wasserstein") else method)
    assert dataset_drift(watched, two(3_000, 1), two(500, 3)).drifted_columns == ()


def test_an_effect_that_chance_explains_is_no_drift() -> None:
    """Jensen-Shannon reaches 0.1 in about half the windows of 100 rows without drift."""
    watched = config(min_rows=100)
    drifts = [dataset_drift(watched, two(5_000, 1), two(100, 10 + n)) for n in range(20)]
    assert sum(found(drift, "x").values.effect >= 0.1 for drift in drifts) >= 5
    assert sum(bool(drift.drifted_columns) for drift in drifts) <= 2


def test_chance_is_as_often_exceeded_as_it_says() -> None:
    """The reference is a sample itself: if windows alone were drawn, half of these would exceed the 5 %."""
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(300):
        old, new = pd.Series(rng.normal(size=1_000)), pd.Series(rng.normal(size=1_000))
        p_values.append(departure("jensenshannon", tally("jensenshannon", old, new), 200, rng).p_value)
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09


def test_one_far_value_does_not_hide_drift() -> None:
    """It does in Evidently's own cells, which cut the joint range into equal parts."""
    old, new = two(3_000, 1), two(500, 2, shift=1.0)
    new.loc[0, "x"] = 1e6
    assert evidently_distance(old["x"], new["x"]) < 0.1
    assert dataset_drift(config(), old, new).drifted_columns == ("x",)


def test_the_smallest_planted_drift_is_found_in_the_sizes_that_count() -> None:
    strength = strength_for(MODEL, "chol", 0.2)
    window = fresh(MODEL, 500, 77)
    drift = dataset_drift(model(MODEL), reference(MODEL), window.assign(chol=moved(window["chol"], strength, 1)))
    assert drift.drifted_columns == ("chol",)


def test_missing_values_that_become_more_are_drift_of_their_own() -> None:
    window = two(500, 2)
    window.loc[:99, "x"] = np.nan
    drift = dataset_drift(config(), two(3_000, 1), window)
    x = found(drift, "x")
    assert x.drifted and x.missing.drifted and not x.values.drifted
    assert (x.reference_missing, x.window_missing) == (0.0, 0.2)
    assert found(drift, "word").missing is None


def test_new_categories_are_counted_and_named() -> None:
    window = two(500, 2)
    window.loc[:99, "word"] = "new"
    window.loc[100, "word"] = "w" * 500
    word = found(dataset_drift(config(), two(3_000, 1), window), "word")
    assert (word.new_categories, word.new_share, word.drifted) == (2, 0.202, True)
    assert word.named[0] == "new" and len(word.named[1]) <= 60


def test_a_column_that_vanished_or_is_empty_is_said_so() -> None:
    gone = dataset_drift(config(), two(3_000, 1), two(500, 2).drop(columns="word"))
    assert (found(gone, "word").state, gone.drifted_columns, found(gone, "word").window_missing) == (
        "vanished",
        ("word",),
        1.0,
    )
    empty = dataset_drift(config(), two(3_000, 1), two(500, 2).assign(x=np.nan))
    assert (found(empty, "x").state, found(empty, "x").values, empty.drifted_columns) == ("empty", None, ("x",))


@pytest.mark.parametrize("rows", [0, 499])
def test_a_small_window_is_not_judged(rows: int) -> None:
    drift = dataset_drift(config(), two(3_000, 1), two(rows, 2, shift=9))
    assert not drift.judged and not drift.drifted and drift.columns == ()
    assert drift.reason.startswith(f"too small: {rows} rows, 500 are needed")


def test_the_share_of_drifted_columns_is_weighted_by_importance() -> None:
    window = two(500, 2, shift=1.0)
    shares = {
        None: dataset_drift(config(), two(3_000, 1), window),
        "x": dataset_drift(config(), two(3_000, 1), window, importance={"x": 0.9, "word": 0.1}),
        "word": dataset_drift(config(), two(3_000, 1), window, importance={"word": 2.0}),
    }
    assert {key: (drift.drifted_share, drift.drifted) for key, drift in shares.items()} == {
        None: (0.5, True),
        "x": (0.9, True),
        "word": (0.0, False),
    }


def test_a_large_window_is_sampled_and_its_counts_are_exact() -> None:
    window = two(50_000, 2)
    window.loc[:24_999, "x"] = np.nan
    drift = dataset_drift(config(), two(3_000, 1), window)
    assert (drift.rows, drift.sampled, found(drift, "x").window_missing) == (50_000, 20_000, 0.5)
    known = window["x"].dropna()
    assert found(drift, "x").window_quantiles[2] == pytest.approx(known.median(), rel=1e-4)


def test_the_same_window_is_judged_the_same_and_round_trips() -> None:
    drift, again = (dataset_drift(config(), two(3_000, 1), two(25_000, 2, shift=0.1)) for _ in range(2))
    assert drift == again == DatasetDrift.model_validate_json(drift.model_dump_json())


def test_a_changed_language_of_logs_is_told_and_the_same_one_is_not() -> None:
    name = "pipeline_errors"
    old = reference(name)
    same, other = fresh(name, 500, 61), fresh(name, 500, 62, new_templates=0.6)
    assert dataset_drift(model(name), old, same).drifted_columns == ()
    assert dataset_drift(model(name), old, other).drifted_columns == ("log_text",)


def test_holm_steps_down_and_stops_at_the_first_that_stands() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == (True, False, False, True)
    assert holm([]) == ()
    assert resamples_for(200) == 20_000  # the smallest p-value there is lies well below 5 % by 200


@pytest.mark.parametrize("methods", [{"nowhere": "ks"}, {"word": "ks"}, {"x": "euclid"}])
def test_a_method_that_a_column_cannot_have_is_refused(methods: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.methods"):
        config(methods=methods)


def test_a_column_may_have_its_own_method() -> None:
    drift = dataset_drift(config(methods={"x": "wasserstein"}), two(3_000, 1), two(500, 2))
    assert [(c.column, c.method) for c in drift.columns] == [("x", "wasserstein"), ("word", "jensenshannon")]


def test_rows_of_a_version_that_does_not_read_a_column_say_nothing_of_it() -> None:
    window = two(1_200, 2)
    unread = np.arange(1_200) < 600
    window.loc[unread, "word"] = None
    assert dataset_drift(config(), two(3_000, 1), window).drifted_columns == ("word",)
    read = dataset_drift(config(), two(3_000, 1), window, unread={"word": unread})
    assert read.drifted_columns == () and found(read, "word").window_missing == 0
    few = dataset_drift(config(), two(3_000, 1), window, unread={"word": np.arange(1_200) < 1_100})
    word = found(few, "word")
    assert (word.state, word.values, word.missing, few.drifted_share) == ("unread", None, None, 0.0)
    assert DatasetDrift.model_validate_json(few.model_dump_json()) == few


def test_what_all_training_rows_had_is_known_from_their_exact_figures() -> None:
    """A category and missing values so rare that the reference's sample has none of them."""
    window = two(2_000, 2)
    window.loc[:9, "word"] = "rare"
    window.loc[10:19, "word"] = "never"
    assert found(dataset_drift(config(), two(3_000, 1), window), "word").named == ("rare", "never")
    figures = {"count": 300_000, "missing": 3_000, "categories": {"a": 99_000, "b": 99_000, "c": 98_950, "rare": 50}}
    quantiles = {"0": -5.0, "0.01": -2.5, "0.25": -0.6, "0.5": 0.0, "0.75": 0.6, "0.99": 2.5, "1": 5.0}
    exact = {"word": figures, "x": {"count": 300_000, "missing": 0, "quantiles": quantiles}}
    drift = dataset_drift(config(), two(3_000, 1), window, exact=exact)
    word, x = found(drift, "word"), found(drift, "x")
    assert (word.named, word.new_share, word.reference_missing) == (("never",), 0.005, 0.01)
    assert word.missing is not None and word.missing.effect > 0
    assert x.reference_quantiles == (-2.5, -0.6, 0.0, 0.6, 2.5) and len(x.window_quantiles) == 5
