"""People like those of UCI 544 (obesity levels by eating habits and physical condition)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from steps.generators.draws import Array, choose, truncated
from steps.generators.knobs import Generator, empty, relabel, shift, spike

LEVELS = (
    "Insufficient_Weight", "Normal_Weight", "Overweight_Level_I", "Overweight_Level_II",
    "Obesity_Type_I", "Obesity_Type_II", "Obesity_Type_III",
)  # fmt: skip

# One entry a level, from its published marginal figures; shares of 0 and 1 are softened.
_SHARES = np.array([0.129, 0.136, 0.137, 0.137, 0.166, 0.141, 0.154])
_BMI = np.array([17.4, 22.0, 26.0, 28.3, 32.3, 36.8, 42.3])
_BMI_SPREAD = np.array([0.8, 1.8, 0.7, 0.9, 1.2, 1.3, 2.6])
_BMI_ENDS = np.array([13.0, 18.5, 25.0, 27.0, 30.0, 35.0, 40.0, 51.0])  # WHO's, and half of overweight
_WOMEN = np.array([0.64, 0.49, 0.50, 0.36, 0.44, 0.05, 0.95])
_AGE = np.array([19.8, 21.7, 23.4, 27.0, 25.9, 28.2, 23.5])
_AGE_SPREAD = np.array([2.7, 5.1, 6.1, 8.0, 7.8, 4.9, 2.8])
_YES = {
    "family_history_with_overweight": np.array([0.46, 0.54, 0.72, 0.94, 0.98, 0.99, 0.99]),
    "FAVC": np.array([0.81, 0.72, 0.92, 0.74, 0.97, 0.98, 0.99]),
    "SMOKE": np.array([0.005, 0.045, 0.01, 0.02, 0.02, 0.05, 0.005]),
    "SCC": np.array([0.08, 0.10, 0.13, 0.015, 0.01, 0.005, 0.005]),
}
_OFTEN = np.array(["no", "Sometimes", "Frequently", "Always"], dtype=object)
_CAEC = np.array(
    [[0.01, 0.54, 0.43, 0.02], [0.03, 0.55, 0.30, 0.12], [0.12, 0.81, 0.05, 0.02], [0.01, 0.92, 0.06, 0.01],
     [0.01, 0.95, 0.02, 0.02], [0.005, 0.98, 0.005, 0.01], [0.003, 0.99, 0.005, 0.002]]
)  # fmt: skip
_CALC = np.array(
    [[0.43, 0.565, 0.005, 0], [0.37, 0.56, 0.065, 0.005], [0.17, 0.77, 0.06, 0], [0.44, 0.49, 0.07, 0],
     [0.47, 0.49, 0.04, 0], [0.24, 0.75, 0.01, 0], [0.01, 0.985, 0.005, 0]]
)  # fmt: skip
_TRAVEL = np.array(["Automobile", "Bike", "Motorbike", "Public_Transportation", "Walking"], dtype=object)
_MTRANS = np.array(
    [[0.17, 0.002, 0.003, 0.80, 0.025], [0.16, 0.01, 0.02, 0.70, 0.11], [0.23, 0.01, 0.005, 0.725, 0.03],
     [0.32, 0.003, 0.005, 0.652, 0.02], [0.31, 0.002, 0.01, 0.668, 0.01], [0.32, 0.002, 0.003, 0.67, 0.005],
     [0.01, 0.001, 0.001, 0.985, 0.003]]
)  # fmt: skip
# Mean by level, spread, ends, share of answers in whole numbers (the others were interpolated by the set's authors).
_SCALES: Mapping[str, tuple[Array, float, tuple[float, float], float]] = {
    "FCVC": (np.array([2.48, 2.33, 2.26, 2.26, 2.19, 2.39, 2.95]), 0.53, (1, 3), 0.60),
    "NCP": (np.array([2.91, 2.74, 2.50, 2.50, 2.43, 2.74, 3.0]), 0.78, (1, 4), 0.65),
    "CH2O": (np.array([1.87, 1.85, 2.06, 2.03, 2.11, 1.88, 2.21]), 0.65, (1, 3), 0.40),
    "FAF": (np.array([1.25, 1.25, 1.06, 0.96, 0.99, 0.97, 0.66]), 0.95, (0, 3), 0.45),
    "TUE": (np.array([0.84, 0.68, 0.61, 0.70, 0.68, 0.52, 0.60]), 0.70, (0, 2), 0.50),
}


def people(rows: int, seed: int, knobs: Mapping[str, float]) -> pd.DataFrame:
    """Draw people: columns, types and class mix of the real set.

    A level is drawn first, all else given the level, column by column from marginal figures; no row of the real set
    is used. Weight follows from height and a body mass index within the level's bounds, so that height and weight
    almost determine the level; the habits only lean on it.

    Args:
        rows: Number of rows.
        seed: Seed of numpy's PCG64.
        knobs: `noise` share of people whose label is the level next to their own.

    Returns:
        The 16 columns of the real set and the level.
    """
    rng = np.random.default_rng(seed)
    level = choose(rng, _SHARES[None, :], np.zeros(rows, dtype=np.int64))
    woman = rng.random(rows) < _WOMEN[level]
    index = truncated(rng, _BMI[level], _BMI_SPREAD[level], _BMI_ENDS[level], _BMI_ENDS[level + 1])
    height = truncated(rng, np.where(woman, 1.64, 1.76), 0.07, 1.45, 1.98)
    above = _AGE[level] - 14
    age = 14 + rng.gamma((above / _AGE_SPREAD[level]) ** 2, _AGE_SPREAD[level] ** 2 / above)
    frame = pd.DataFrame({"Gender": np.where(woman, "Female", "Male").astype(object)})
    frame["Age"] = _partly_whole(rng, np.clip(age, 14, 61), 0.35)
    frame["Height"] = np.round(height, 6)
    frame["Weight"] = np.round(index * height**2, 6)
    for name in ("family_history_with_overweight", "FAVC"):
        frame[name] = _yes(rng, _YES[name][level])
    frame["FCVC"] = _scale(rng, "FCVC", level)
    frame["NCP"] = _scale(rng, "NCP", level)
    frame["CAEC"] = _OFTEN[choose(rng, _CAEC, level)]
    frame["SMOKE"] = _yes(rng, _YES["SMOKE"][level])
    frame["CH2O"] = _scale(rng, "CH2O", level)
    frame["SCC"] = _yes(rng, _YES["SCC"][level])
    frame["FAF"] = _scale(rng, "FAF", level)
    frame["TUE"] = _scale(rng, "TUE", level)
    frame["CALC"] = _OFTEN[choose(rng, _CALC, level)]
    frame["MTRANS"] = _TRAVEL[choose(rng, _MTRANS, level)]
    step = np.where(rng.random(rows) < 0.5, -1, 1) * (rng.random(rows) < knobs["noise"])
    frame["NObeyesdad"] = np.array(LEVELS, dtype=object)[np.clip(level + step, 0, len(LEVELS) - 1)]
    return frame


def _yes(rng: np.random.Generator, share: Array) -> Array:
    return np.where(rng.random(len(share)) < share, "yes", "no").astype(object)


def _scale(rng: np.random.Generator, name: str, level: Array) -> Array:
    mean, spread, (low, high), whole = _SCALES[name]
    return _partly_whole(rng, np.clip(rng.normal(mean[level], spread), low, high), whole)


def _partly_whole(rng: np.random.Generator, values: Array, share: float) -> Array:
    return np.where(rng.random(len(values)) < share, np.rint(values), np.round(values, 6))


GENERATOR = Generator(
    draw=people,
    own={"noise": 0.02},
    effects={
        "drift": shift("Age", "Weight", "TUE"),
        "bias": relabel("NObeyesdad", dict.fromkeys(LEVELS[4:], LEVELS[3]), group=("Gender", "Female")),
        "missing": empty("FCVC", "NCP", "CAEC", "CH2O", "FAF", "TUE", "CALC", "MTRANS"),
        "outliers": spike("Age", "Height", "Weight"),
    },
)
