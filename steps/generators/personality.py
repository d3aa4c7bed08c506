"""People like those of a public survey on extroverted and introverted behaviour."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from steps.generators.draws import Array
from steps.generators.knobs import Generator, empty, relabel, shift, spike

# Smallest and largest usual answer of extroverts and of introverts, and the mean that stands for no answer.
_ANSWERS: Mapping[str, tuple[tuple[int, int], tuple[int, int], float]] = {
    "Time_spent_Alone": ((0, 3), (4, 11), 4.505816),
    "Social_event_attendance": ((4, 9), (0, 3), 3.963354),
    "Going_outside": ((3, 7), (0, 2), 3.0),
    "Friends_circle_size": ((5, 15), (0, 5), 6.268863),
    "Post_frequency": ((3, 9), (0, 2), 3.564727),
}
_SHY = ("Stage_fear", "Drained_after_socializing")


def people(rows: int, seed: int, knobs: Mapping[str, float]) -> pd.DataFrame:
    """Draw people: columns, types, class mix and the many equal rows of the real set.

    Most people answer within the usual range of their kind, each question by itself; a share of them answers as the
    other kind does, and that share is all that no model can tell. No row of the real set is used.

    Args:
        rows: Number of rows.
        seed: Seed of numpy's PCG64.
        knobs: `noise` share of people who answer as the other kind does; `slips` share of single answers that do;
            `unanswered` share of answers replaced by the question's mean, as in the real set.

    Returns:
        Five numbers, two yes or no answers, and `Personality`.
    """
    rng = np.random.default_rng(seed)
    introvert = rng.random(rows) < 0.486
    seems = introvert ^ (rng.random(rows) < knobs["noise"])
    frame = pd.DataFrame(index=pd.RangeIndex(rows))
    for name in ("Time_spent_Alone", "Stage_fear", *list(_ANSWERS)[1:3], "Drained_after_socializing"):
        frame[name] = _shy(rng, seems, knobs) if name in _SHY else _answer(rng, name, seems, knobs)
    for name in list(_ANSWERS)[3:]:
        frame[name] = _answer(rng, name, seems, knobs)
    frame["Personality"] = np.where(introvert, "Introvert", "Extrovert").astype(object)
    return frame


def _answer(rng: np.random.Generator, name: str, seems: Array, knobs: Mapping[str, float]) -> Array:
    """Whole numbers, evenly drawn from the range of the kind that a person seems to be."""
    *ranges, mean = _ANSWERS[name]
    kind = (seems ^ (rng.random(len(seems)) < knobs["slips"])).astype(np.int64)
    low, high = np.array(ranges).T
    drawn = rng.integers(low[kind], high[kind], endpoint=True).astype(np.float64)
    return np.where(rng.random(len(seems)) < knobs["unanswered"], mean, drawn)


def _shy(rng: np.random.Generator, seems: Array, knobs: Mapping[str, float]) -> Array:
    return np.where(seems ^ (rng.random(len(seems)) < knobs["slips"] / 4), "Yes", "No").astype(object)


GENERATOR = Generator(
    draw=people,
    own={"noise": 0.07, "slips": 0.01, "unanswered": 0.022},
    effects={
        "drift": shift("Time_spent_Alone", "Post_frequency"),
        "bias": relabel("Personality", {"Introvert": "Extrovert"}, group=("Stage_fear", "Yes")),
        "missing": empty(*_ANSWERS, *_SHY),
        "outliers": spike("Time_spent_Alone", "Friends_circle_size", "Post_frequency"),
    },
)
