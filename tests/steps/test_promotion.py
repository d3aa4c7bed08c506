"""How often noise becomes champion and how often a better model does: answers simulated row by row, real judgement."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import norm

from bentos.release import Answers
from models.config import ModelConfig
from steps.compare import Comparison, contest
from steps.evaluate import Evaluation
from steps.verdict import judge
from tests.steps.arena import config_of, evaluation_of, package_of

ROWS = 2_000
LABELS = ("a", "b")
CORRELATIONS = (0.0, 0.5)


def shipped(model: str = "wine") -> ModelConfig:
    """The shipped rule of promotion, and no floor that could stop a challenger for another reason."""
    return config_of(model, gates={})


def simulated(seed: int, old: float, new: float, correlation: float) -> Comparison:
    """A champion and a challenger of given true accuracies on 2,000 rows.

    A model is right about a row where a normal margin is positive, of which a part, `correlation`, is how hard the row
    is for both; its probability of the true class follows that margin.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=ROWS)
    hard = rng.normal(size=ROWS)
    said = []
    for accuracy in (old, new):
        own = np.sqrt(correlation) * hard + np.sqrt(1 - correlation) * rng.normal(size=ROWS)
        of_truth = norm.cdf(own + norm.ppf(accuracy))
        second = np.where(truth == 1, of_truth, 1 - of_truth)
        codes = (second > 0.5).astype(int)
        said.append(Answers(np.array(LABELS, dtype=object)[codes], np.column_stack([1 - second, second])))
    return contest(shipped(), LABELS, np.array(LABELS, dtype=object)[truth], *said)


def evaluated(compared: Comparison, model: str, champion: int) -> Evaluation:
    return evaluation_of(
        model,
        champion_version=champion,
        champion=compared.champion,
        challenger_compared=compared.challenger,
        challenger=compared.challenger,
        paired=compared.paired,
        rows=compared.rows,
        test_rows=compared.rows,
    )


def promoted(trials: int, old: float, new: float, correlation: float) -> int:
    """How many of so many challengers are promoted."""
    count = 0
    for seed in range(trials):
        evaluation = evaluated(simulated(seed, old, new, correlation), "wine", 1)
        count += judge(shipped(), evaluation, package_of(2), 1).decision == "promoted"
    return count


def test_noise_is_kept_out_and_a_better_model_let_in() -> None:
    assert promoted(40, 0.80, 0.80, 0.5) <= 2
    assert promoted(40, 0.80, 0.84, 0.5) >= 32


@pytest.mark.prove
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_200_challengers_without_and_with_a_true_improvement(correlation: float, proof: Callable[..., None]) -> None:
    equal, better = (promoted(200, 0.80, accuracy, correlation) for accuracy in (0.80, 0.84))
    _told(proof, f"answers correlated by {correlation:g}", equal, better)
    assert equal <= 10
    assert better >= 160


def _told(proof: Callable[..., None], how: str, equal: int, better: int) -> None:
    for what, count in (("no true improvement", equal), ("a true 5 % relative improvement", better)):
        line = f"Challengers promoted: {what} of accuracy 0.80 on 2,000 rows, {how}"
        proof(line, 200, f"{count} promoted ({count / 2:g} %)")
