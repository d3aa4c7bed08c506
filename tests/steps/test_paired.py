from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bentos.release import Answers
from models.config import ModelConfig
from models.errors import DataError
from steps import paired as module
from steps.counted import BY_LABEL, score_labels, score_rows
from steps.measure import measure
from steps.metrics import compute_metrics, greater_is_better
from steps.paired import Side, mcnemar, paired_difference, paired_differences
from tests.steps.arena import config_of

LABELS = ("a", "b", "c")
BOTH = ("roc_auc", "log_loss", "brier", "ece")
OTHERS = (*BOTH, "pr_auc")
MANY = (*BOTH, "pr_auc_macro")


def classifier(metric: str, classes: int) -> ModelConfig:
    return config_of(metric=metric, target={"column": "y", "labels": list(LABELS[:classes])}, gates={})


def regressor(metric: str) -> ModelConfig:
    return config_of(metric=metric, task="regression", target={"column": "y"}, gates={})


def answers(truth: Any, classes: int, sharp: float, seed: int) -> Answers:
    """Probabilities with ties, the sharper the more often right."""
    rng = np.random.default_rng(seed)
    said = rng.dirichlet(np.ones(classes), len(truth))
    said[np.arange(len(truth)), truth % classes] += sharp
    said = np.round(said / said.sum(axis=1, keepdims=True), 2)
    said /= said.sum(axis=1, keepdims=True)
    return Answers(np.array(LABELS, dtype=object)[said.argmax(axis=1)], said)


def example(rows: int, classes: int, seed: int = 1) -> tuple[Any, Answers, Answers]:
    """True labels and a champion's and a better challenger's answers."""
    codes = np.random.default_rng(seed).integers(classes, size=rows)
    truth = np.array(LABELS, dtype=object)[codes]
    return truth, answers(codes, classes, 0.3, seed + 1), answers(codes, classes, 0.6, seed + 2)


def numbers(rows: int, seed: int = 1) -> tuple[Any, Answers, Answers]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(5, 2, rows)
    return truth, Answers(truth + rng.normal(size=rows), None), Answers(truth + 0.8 * rng.normal(size=rows), None)


@pytest.mark.parametrize(
    ("metric", "classes"), [(metric, 2) for metric in (*BY_LABEL, *OTHERS)] + [(m, 3) for m in (*BY_LABEL, *MANY)]
)
def test_a_figure_from_counts_is_the_figure_of_the_rows_drawn(metric: str, classes: int) -> None:
    truth, said, _ = example(150, classes)
    truth[:3] = "a class that it does not know"
    codes = np.array([LABELS.index(label) if label in LABELS else -1 for label in truth])
    told = np.array([LABELS.index(label) for label in said.values])
    counts = np.random.default_rng(5).poisson(1.0, size=(4, 150)).astype(float)
    if metric in BY_LABEL:
        figures = score_labels(metric, codes, told, classes)(counts)
    else:
        assert said.probabilities is not None
        figures = score_rows(metric, codes, said.probabilities)(counts)
    for drawn, figure in zip(counts.astype(int), figures, strict=True):
        rows = np.repeat(np.arange(150), drawn)
        assert said.probabilities is not None
        again = Answers(said.values[rows], said.probabilities[rows])
        config = classifier(metric, classes)
        assert figure == pytest.approx(compute_metrics(config, LABELS[:classes], truth[rows], again)[metric])


@pytest.mark.parametrize("metric", ["mae", "rmse", "r2"])
def test_a_regressions_figure_from_counts_is_the_figure_of_the_rows_drawn(metric: str) -> None:
    truth, said, _ = numbers(150)
    counts = np.random.default_rng(5).poisson(1.0, size=(4, 150)).astype(float)
    for drawn, figure in zip(counts.astype(int), score_rows(metric, truth, said.values)(counts), strict=True):
        rows = np.repeat(np.arange(150), drawn)
        again = Answers(said.values[rows], None)
        assert figure == pytest.approx(compute_metrics(regressor(metric), (), truth[rows], again)[metric])


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "log_loss", "r2"])
def test_bounds_are_those_of_rows_drawn_one_by_one(metric: str) -> None:
    """Beside a plain loop with the metric's own code and another seed; the other metrics differ in what they count."""
    regression = metric == "r2"
    config = regressor(metric) if regression else classifier(metric, 2)
    truth, old, new = numbers(200) if regression else example(200, 2)
    labels = () if regression else LABELS[:2]
    sign, rng = 1 if greater_is_better(metric) else -1, np.random.default_rng(99)
    gains = []
    for rows in rng.integers(200, size=(250, 200)):
        figures = [compute_metrics(config, labels, truth[rows], taken(one, rows))[metric] for one in (old, new)]
        gains.append(sign * (figures[1] - figures[0]))
    found = paired_difference(config, labels, truth, old, new)
    low, high = np.quantile(gains, (0.025, 0.975))
    width = high - low
    assert found.low == pytest.approx(low, abs=width / 5)
    assert found.high == pytest.approx(high, abs=width / 5)
    whole = [compute_metrics(config, labels, truth, one)[metric] for one in (old, new)]
    assert found.estimate == pytest.approx(sign * (whole[1] - whole[0]))
    assert paired_difference(config, labels, truth, old, new) == found


def taken(said: Answers, rows: Any) -> Answers:
    return Answers(said.values[rows], None if said.probabilities is None else said.probabilities[rows])


def test_equal_answers_differ_by_nothing() -> None:
    truth, said, _ = example(300, 3)
    for metric in ("accuracy", "log_loss", "roc_auc"):
        found = paired_difference(classifier(metric, 3), LABELS, truth, said, said)
        assert (found.estimate, found.low, found.high, found.mcnemar_p) == (0.0, 0.0, 0.0, 1.0)


def test_the_worse_one_is_below_zero() -> None:
    truth, old, new = numbers(500)
    found = paired_difference(regressor("rmse"), (), truth, new, old)
    assert found.low < found.estimate < found.high < 0
    assert found.mcnemar_p is None


def test_many_rows_go_into_bags_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, old, new = numbers(60_000)
    in_bags = paired_difference(regressor("mae"), (), truth, old, new)
    monkeypatch.setattr(module, "PLAIN_ROWS", 100_000)
    plain = paired_difference(regressor("mae"), (), truth, old, new)
    assert in_bags != plain
    assert in_bags.estimate == plain.estimate
    assert in_bags.low == pytest.approx(plain.low, abs=0.001)
    assert in_bags.high == pytest.approx(plain.high, abs=0.001)


@pytest.mark.parametrize(("one", "other", "p"), [(1, 7, 0.0391), (7, 1, 0.0391), (5, 0, 0.03125), (3, 3, 1.0)])
def test_mcnemar_is_the_mid_p(one: int, other: int, p: float) -> None:
    """1 and 7 are the airways of Fagerland, Lydersen and Laake (2013), table 1: exact 0.070, mid-p 0.039."""
    right = np.array([True] * one + [False] * other + [True] * 5)
    wrong = np.array([False] * one + [True] * other + [True] * 5)
    assert mcnemar(right, wrong) == pytest.approx(p, abs=5e-5)


def test_rows_that_do_not_allow_the_interval_are_an_error() -> None:
    truth, old, new = example(200, 2)
    truth[:] = "a"
    truth[0] = "b"
    with pytest.raises(DataError, match=r"roc_auc is defined on \d+ of 1000 resamples of the 200 rows"):
        paired_difference(classifier("roc_auc", 2), LABELS[:2], truth, old, new)
    with pytest.raises(DataError, match="1 row is too few"):
        paired_difference(classifier("accuracy", 2), LABELS[:2], truth[:1], taken(old, [0]), taken(new, [0]))


def sides(config: ModelConfig, labels: Any, truth: Any, *said: Answers) -> list[Side]:
    return [Side(one, compute_metrics(config, labels, truth, one)) for one in said]


@pytest.mark.parametrize(("rows", "classes"), [(300, 0), (300, 2), (300, 3), (52_000, 0), (52_000, 2), (52_000, 3)])
def test_each_figure_s_difference_is_the_one_that_would_decide(rows: int, classes: int) -> None:
    """Drawn at once, of few rows one by one and of many in bags: the same resamples, the same bounds."""
    truth, old, new = example(rows, classes) if classes else numbers(rows)
    labels, other = LABELS[:classes], "accuracy" if classes else "rmse"
    names = (*BOTH, "pr_auc" if classes == 2 else "pr_auc_macro") if classes else ("mae", "r2")
    config = classifier(other, classes) if classes else regressor(other)
    found = paired_differences(config, labels, truth, *sides(config, labels, truth, old, new))
    assert set(names) <= set(found) and other not in found
    for name in names:
        alone = paired_difference(config.model_copy(update={"metric": name}), labels, truth, old, new)
        each = found[name]
        assert (each.estimate, each.low, each.high) == pytest.approx((alone.estimate, alone.low, alone.high)), name
        assert each.estimate > 0 or name == "ece"


def test_the_differences_in_labels_are_those_of_rows_drawn_one_by_one() -> None:
    truth, old, new = example(200, 3)
    config = classifier("roc_auc", 3)
    gains: dict[str, list[float]] = {name: [] for name in BY_LABEL}
    for rows in np.random.default_rng(99).integers(200, size=(400, 200)):
        before, now = (compute_metrics(config, LABELS, truth[rows], taken(one, rows)) for one in (old, new))
        for name, known in gains.items():
            known.append(now[name] - before[name])
    found = paired_differences(config, LABELS, truth, *sides(config, LABELS, truth, old, new))
    for name, known in gains.items():
        low, high = np.quantile(known, (0.025, 0.975))
        assert found[name].low == pytest.approx(low, abs=(high - low) / 5)
        assert found[name].high == pytest.approx(high, abs=(high - low) / 5)


def test_what_was_drawn_for_the_challenger_s_own_intervals_is_not_drawn_again() -> None:
    truth, old, new = example(300, 2)
    own = {"right": {"function": f"{__name__}:share_right"}, "b": {"function": f"{__name__}:unasked"}}
    config = config_of(target={"column": "y", "labels": list(LABELS[:2])}, gates={}, evaluation={"metrics": own})
    champion, challenger = sides(config, LABELS[:2], truth, old, new)
    known = measure(config, LABELS[:2], truth, new).drawn
    ASKED.clear()
    found = paired_differences(config, LABELS[:2], truth, champion, replace(challenger, drawn=known))
    assert len(ASKED) == config.evaluation.resamples, "the champion's"
    assert found == paired_differences(config, LABELS[:2], truth, champion, challenger)
    assert found["right"].estimate == challenger.figures["accuracy"] - champion.figures["accuracy"] > 0
    assert found["right"].low < found["right"].estimate < found["right"].high
    assert found["b"].model_dump() == {"estimate": 0, "low": 0, "high": 0}


def test_a_difference_that_most_resamples_do_not_allow_is_left_out() -> None:
    truth, old, new = example(200, 2)
    config = classifier("accuracy", 2)
    truth[:] = "a"
    assert "roc_auc" not in paired_differences(config, LABELS[:2], truth, *sides(config, LABELS[:2], truth, old, new))
    truth[0] = "b"
    found = paired_differences(config, LABELS[:2], truth, *sides(config, LABELS[:2], truth, old, new))
    assert "roc_auc" in found, "63 of 100 resamples have the one row"


def share_right(truth: Any, predicted: Any, probabilities: Any) -> float:
    return float(np.mean(truth == predicted))


def test_a_figure_of_the_user_s_own_is_compared_as_the_same_shipped_one() -> None:
    truth, champion, challenger = example(300, 2)
    own = {"right": {"function": f"{__name__}:share_right"}}
    config = config_of(
        metric="right", target={"column": "y", "labels": list(LABELS[:2])}, gates={}, evaluation={"metrics": own}
    )
    mine = paired_difference(config, LABELS[:2], truth, champion, challenger)
    shipped = paired_difference(classifier("accuracy", 2), LABELS[:2], truth, champion, challenger)
    assert mine.estimate == pytest.approx(shipped.estimate)
    assert (mine.low, mine.high) == pytest.approx((shipped.low, shipped.high), abs=0.01)


ASKED: list[int] = []


def unasked(truth: Any, predicted: Any, probabilities: Any) -> float:
    ASKED.append(len(truth))
    return 0.0


def test_of_the_user_s_figures_only_the_deciding_one_is_computed_anew_for_each_resample() -> None:
    truth, champion, challenger = example(100, 2)
    own = {
        name: {"function": f"{__name__}:{function}"} for name, function in (("right", "share_right"), ("b", "unasked"))
    }
    config = config_of(
        metric="right", target={"column": "y", "labels": list(LABELS[:2])}, gates={}, evaluation={"metrics": own}
    )
    ASKED.clear()
    paired_difference(config, LABELS[:2], truth, champion, challenger)
    assert ASKED == []
