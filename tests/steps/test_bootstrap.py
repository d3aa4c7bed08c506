from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from steps.bootstrap import CELLS, PLAIN_ROWS, Interval, cells, draw, each_row, interval, resample
from steps.figures import BY_CLASS, Classified, Estimated, classified, estimated
from steps.metrics import classification_metrics, regression_metrics


def scores(rows: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Truth and probabilities that fit it: drawn from a softmax of normal scores."""
    rng = np.random.default_rng(seed)
    raw = np.exp(rng.normal(size=(rows, classes)))
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    truth = (rng.random((rows, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    return np.minimum(truth, classes - 1), probabilities


def once(answers: Classified | Estimated, rows: Any) -> dict[str, float]:
    """Figures of given rows, some of them many times."""
    counts = np.bincount(rows, minlength=len(answers.cells.sizes))[None].astype(np.float64)
    return {name: float(values[0]) for name, values in answers.figures(counts).items()}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_counted_figures_are_those_of_the_rows_that_were_drawn(classes: int) -> None:
    truth, probabilities = scores(300, classes, seed=classes)
    probabilities = probabilities.round(2) / probabilities.round(2).sum(axis=1, keepdims=True)  # many ties
    answers = classified(truth, probabilities.argmax(axis=1), probabilities, probabilities.max(axis=1) > 0.4)
    rng = np.random.default_rng(5)
    for rows in (np.arange(300), rng.integers(0, 300, 300), rng.integers(0, 40, 300)):
        counted, t, p = once(answers, rows), truth[rows], probabilities[rows]
        expected = classification_metrics(t, p)
        assert {name: counted[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        told = p.max(axis=1) > 0.4
        assert counted["answered"] == pytest.approx(told.mean())
        assert counted["accuracy_answered"] == pytest.approx(np.mean((t == p.argmax(axis=1))[told]))


def test_figures_of_a_class_are_those_of_scikit_learn() -> None:
    truth, probabilities = scores(200, 4)
    said = probabilities.argmax(axis=1)
    counted = once(classified(truth, said, probabilities), np.arange(200))
    parts = sk.precision_recall_fscore_support(truth, said)[:3]
    for code in range(4):
        expected = [part[code] for part in parts]
        expected += [area(truth == code, probabilities[:, code]) for area in (sk.roc_auc_score, AVERAGE_PRECISION)]
        assert [counted[f"{name}:{code}"] for name in BY_CLASS] == pytest.approx(expected)


AVERAGE_PRECISION = sk.average_precision_score


def test_what_the_rows_do_not_allow_is_nan() -> None:
    truth, probabilities = scores(100, 3)
    answers = classified(truth, probabilities.argmax(axis=1), probabilities)
    counted = once(answers, np.flatnonzero(truth == 1))
    assert np.isnan([counted[name] for name in ("roc_auc", "roc_auc:1", "recall:0", "f1:2", "pr_auc:0")]).all()
    assert counted["accuracy"] == counted["recall:1"] and counted["pr_auc:1"] == 1.0
    constant = once(estimated(np.full(9, 0.1), np.arange(9.0)), np.arange(9))
    assert np.isnan(constant["r2"]) and constant["mae"] == pytest.approx(np.abs(np.arange(9) - 0.1).mean())


def test_counted_figures_of_a_regression() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(1e4, 1, 200)
    said = truth + rng.normal(size=200)
    answers, rows = estimated(truth, said), rng.integers(0, 200, 200)
    assert once(answers, rows) == pytest.approx(regression_metrics(truth[rows], said[rows]), rel=1e-6)


def test_counts_repeat_with_their_seed_and_keep_the_number_of_rows() -> None:
    for sizes in (500, np.array([3, 1, 96])):
        first, again, other = (np.vstack(list(draw(sizes, 40, seed))) for seed in (1, 1, 2))
        rows = 500 if isinstance(sizes, int) else 100
        assert first.shape == (40, 500 if isinstance(sizes, int) else 3)
        assert (first.sum(axis=1) == rows).all()
        assert (first == again).all() and (first != other).any()


def test_cells_keep_strata_apart_and_equal_values_together() -> None:
    rng = np.random.default_rng(0)
    rows = PLAIN_ROWS + 20_000
    strata = rng.integers(0, 6, rows)
    values = np.where(rng.random(rows) < 0.6, 0.25, rng.random(rows))[:, None]
    grouped = cells(strata, values)
    assert CELLS / 4 < len(grouped.sizes) < 4 * CELLS and grouped.sizes.sum() == rows
    assert (strata == strata[grouped.first][grouped.of_row]).all()
    equal = np.flatnonzero((values[:, 0] == 0.25) & (strata == 3))
    assert len(np.unique(grouped.of_row[equal])) == 1
    assert np.abs(grouped.mean(values)[grouped.of_row] - values).max() < 0.01
    assert len(cells(np.zeros(rows, dtype=int), np.zeros((rows, 2))).sizes) == 1
    assert len(cells(strata[:900], values[:900]).sizes) == 900


def compared(build: Callable[..., Any], *given: Any) -> dict[str, float]:
    """By figure, how far the ends of the intervals by cells lie from those by rows at most."""
    grouped, plain = build(*given), build(*given, group=each_row)
    rows = len(given[0])
    assert len(grouped.cells.sizes) < rows == len(plain.cells.sizes)
    whole, rough = once(plain, np.arange(rows)), grouped.figures(grouped.cells.sizes[None].astype(np.float64))
    by_cell = resample(grouped.figures, grouped.cells.sizes, 1_000, 1)
    by_row = resample(plain.figures, rows, 1_000, 2)
    apart = {}
    for name in whole:
        near = interval(by_cell[name], 0.95, whole[name] - float(rough[name][0]))
        exact = interval(by_row[name], 0.95)
        assert near is not None and exact is not None
        apart[name] = max(abs(near.low - exact.low), abs(near.high - exact.high))
    return apart


def test_above_50_000_rows_cells_give_the_intervals_of_rows() -> None:
    rng = np.random.default_rng(3)
    truth = rng.gamma(2.0, 0.2, PLAIN_ROWS + 10_000)
    assert max(compared(estimated, truth, truth + rng.normal(0, 0.2, len(truth))).values()) < 0.001
    codes, probabilities = scores(PLAIN_ROWS + 1, 2)
    apart = compared(only_areas, codes, probabilities.argmax(axis=1), probabilities)
    assert set(apart) == {"roc_auc", "pr_auc"} and max(apart.values()) < 0.001


def only_areas(*given: Any, **grouping: Any) -> Any:
    """The figures that depend on the cells most; all of them are in the proof."""
    answers = classified(*given, **grouping)

    def areas(counts: Any) -> dict[str, Any]:
        roc, precision = answers._ranks[1].areas(counts)
        return {"roc_auc": roc, "pr_auc": precision}

    return SimpleNamespace(cells=answers.cells, figures=areas)


@pytest.mark.prove
def test_cells_give_the_intervals_of_rows_for_many_classes(proof: Callable[[str, object, str], None]) -> None:
    worst = 0.0
    for seed, classes in enumerate((2, 3, 7)):
        truth, probabilities = scores(PLAIN_ROWS + 10_000, classes, seed)
        apart = compared(classified, truth, probabilities.argmax(axis=1), probabilities)
        worst = max(worst, *(value for name, value in apart.items() if ":" not in name))
    proof("bootstrap over cells equals the one over rows within 0.001 (60,000 rows)", 3, f"{worst:.4f} at most")
    assert worst < 0.001


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Accuracy 0.8 and the mean absolute error of a normal error, of 200 rows each, 150 times."""
    rng = np.random.default_rng(11)
    held = [0, 0]
    for seed in range(150):
        right = rng.random(200) < 0.8
        probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        zeros = np.zeros(200, dtype=np.int64)
        answers = classified(zeros, probabilities.argmax(axis=1), probabilities)
        truth = rng.normal(size=200)
        numbers = estimated(truth, truth + rng.normal(size=200))
        for at, (one, name, known) in enumerate(
            ((answers, "accuracy", 0.8), (numbers, "mae", float(np.sqrt(2 / np.pi))))
        ):
            found = interval(resample(one.figures, 200, 400, seed)[name], 0.95)
            assert found is not None
            held[at] += found.low <= known <= found.high
    assert all(0.90 * 150 < count < 0.99 * 150 for count in held)


def test_an_interval_needs_half_of_the_resamples() -> None:
    values = np.array([1.0, 2.0, np.nan, np.nan])
    assert interval(values, 0.95) == Interval(low=1.025, high=1.975)
    assert interval(values, 0.95, moved=1.0) == Interval(low=2.025, high=2.975)
    assert interval(np.array([1.0, np.nan, np.nan]), 0.95) is None
    assert interval(np.array([]), 0.95) is None
