"""Patients like those of the four hospitals of UCI 45 (Heart Disease)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from steps.generators.draws import Array, choose
from steps.generators.knobs import Generator, empty, relabel, shift, spike

SITES = ("cleveland", "hungarian", "switzerland", "va")

# Published summary figures of the four hospitals (UCI 45): cleveland, hungarian, switzerland, va.
_SITES = np.array([303, 294, 123, 200]) / 920
_NUM = np.array([[54, 18, 12, 12, 4], [64, 34, 1, 1, 0], [7, 39, 26, 24, 4], [26, 28, 20, 21, 5]]) / 100
_AGE = np.array([52.5, 47.0, 51.5, 57.0])
_MEN = np.array([[0.55, 0.83], [0.66, 0.83], [0.88, 0.92], [0.95, 0.97]])
_CHEST_PAIN = np.array([[0.06, 0.36, 0.32, 0.26], [0.045, 0.06, 0.145, 0.75]])
_SUGAR = np.array([0.13, 0.06, 0.09, 0.33])
_RESTING_ECG = np.array([[0.50, 0.01, 0.49], [0.80, 0.18, 0.02], [0.70, 0.25, 0.05], [0.40, 0.46, 0.14]])
_HEART_RATE = np.array([0.0, 8.0, 20.0, 19.0])
_SLOPE = np.array([[0.68, 0.26, 0.06], [0.30, 0.60, 0.10]])
_VESSELS = np.array(
    [[0.81, 0.13, 0.04, 0.02], [0.48, 0.33, 0.13, 0.06], [0.26, 0.38, 0.25, 0.11], [0.22, 0.26, 0.38, 0.14],
     [0.22, 0.24, 0.18, 0.36]]
)  # fmt: skip
_THAL = np.array([[0.74, 0.07, 0.19], [0.28, 0.13, 0.59], [0.22, 0.18, 0.60], [0.19, 0.12, 0.69], [0.13, 0.18, 0.69]])
_MISSING = {
    "fbs": (0.0, 0.03, 0.55, 0.04),
    "restecg": (0.0, 0.003, 0.008, 0.0),
    "slope": (0.003, 0.62, 0.14, 0.5),
    "ca": (0.013, 0.98, 0.95, 0.98),
    "thal": (0.007, 0.89, 0.42, 0.82),
}
_NO_EXERCISE = (0.0, 0.003, 0.012, 0.265)  # blood pressure, heart rate, angina and ST depression go missing together
_UNMEASURED = {"chol": 0.0, "trestbps": 0.0}


def patients(rows: int, seed: int, knobs: Mapping[str, float]) -> pd.DataFrame:
    """Draw patients: columns, types, missing pattern and class mix of the real set.

    Drawn from published marginal and conditional figures, column by column given hospital, severity and age; no row
    of the real set is used. The order of the draws is part of the contract: the same seed gives the same rows.

    Args:
        rows: Number of rows.
        seed: Seed of numpy's PCG64.
        knobs: `noise` share of patients whose findings are those of the other class; `older` years added to every
            age; `sicker` share of healthy patients made ill (0 to 1); `women` their share, which then depends on
            nothing else (0: the real shares by hospital and illness); `atypical` share of ill women whose findings are
            those of healthy ones.

    Returns:
        The 13 findings, `num` (0 healthy, 1 to 4 diseased) and the hospital; missing is NaN, or 0 in `chol` and
        `trestbps`.
    """
    rng = np.random.default_rng(seed)
    site = choose(rng, np.broadcast_to(_SITES, (1, 4)), np.zeros(rows, dtype=np.int64))
    num = choose(rng, _NUM, site)
    num = np.where((num == 0) & (rng.random(rows) < knobs["sicker"]), 1, num)
    seems = np.where(rng.random(rows) < knobs["noise"], np.where(num > 0, 0, 1), num)
    ill = (seems > 0).astype(np.int64)
    age = _AGE[site] + 2.2 * ill + 1.2 * seems + knobs["older"] + rng.normal(0, 8.0, rows)
    age = np.clip(np.rint(age), 28, 100)
    frame = pd.DataFrame({"age": age.astype(np.int64)})
    men = 1 - knobs["women"] if knobs["women"] else _MEN[site, ill]
    frame["sex"] = (rng.random(rows) < men).astype(np.int64)
    # A stream of its own: the rows of other patients stay as they are.
    hidden = (np.random.default_rng([seed, rows]).random(rows) < knobs["atypical"]) & (frame["sex"] == 0) & (num > 0)
    seems = np.where(hidden, 0, seems)
    ill = (seems > 0).astype(np.int64)
    frame["cp"] = 1 + choose(rng, _CHEST_PAIN, ill)
    pressure = 129.5 + 0.5 * (age - 50) + 1.5 * ill + rng.normal(0, 17.5, rows)
    frame["trestbps"] = np.clip(2 * np.rint(pressure / 2), 80, 220)
    chol = np.exp(np.log(234 + 14 * ill) + rng.normal(0, 0.225, rows))
    frame["chol"] = np.clip(np.rint(chol), 85, 650)
    frame["fbs"] = (rng.random(rows) < np.clip(_SUGAR[site] * np.where(seems > 1, 1.5, 0.9), 0, 1)).astype(float)
    frame["restecg"] = choose(rng, _RESTING_ECG, site).astype(float)
    rate = 157 - 0.75 * (age - 50) - 13 * ill - _HEART_RATE[site] + rng.normal(0, 19.5, rows)
    frame["thalach"] = np.clip(np.rint(rate), 60, 210)
    frame["exang"] = (rng.random(rows) < np.where(ill, 0.57, 0.13)).astype(float)
    depressed = rng.random(rows) < np.where(ill, 0.64, 0.35)
    depth = rng.gamma(2.2, np.where(ill, 0.72 + 0.12 * seems, 0.52))
    signed = np.where((site >= 2) & (rng.random(rows) < 0.04), -depth / 2, depth)
    oldpeak = np.round(np.clip(np.where(depressed, signed, 0.0), -3, 6.5), 1)
    frame["oldpeak"] = oldpeak + 0.0
    frame["slope"] = 1.0 + choose(rng, _SLOPE, ((oldpeak > 0.4) | (rng.random(rows) < 0.35 * ill)).astype(np.int64))
    frame["ca"] = choose(rng, _VESSELS, seems).astype(float)
    frame["thal"] = np.array([3.0, 6.0, 7.0])[choose(rng, _THAL, seems)]
    frame["num"] = num
    return _with_gaps(frame, site, rng).assign(site=np.array(SITES, dtype=object)[site])


def _with_gaps(frame: pd.DataFrame, site: Array, rng: np.random.Generator) -> pd.DataFrame:
    """Take values away as each hospital did; cholesterol that was not measured is 0."""
    rows = len(frame)
    gaps = {name: rng.random(rows) < np.array(shares)[site] for name, shares in _MISSING.items()}
    untested = rng.random(rows) < np.array(_NO_EXERCISE)[site]
    gaps |= dict.fromkeys(("trestbps", "thalach", "exang", "oldpeak"), untested)
    gaps["chol"] = rng.random(rows) < np.array([0.0, 0.078, 0.0, 0.035])[site]
    holed = {name: frame[name].mask(gap) for name, gap in gaps.items()}
    unmeasured = (site == 2) | ((site == 3) & (rng.random(rows) < 0.245))
    holed["chol"] = holed["chol"].mask(unmeasured, 0.0)
    holed["trestbps"] = holed["trestbps"].mask(rng.random(rows) < 0.001, 0.0)
    return frame.assign(**holed)


GENERATOR = Generator(
    draw=patients,
    own={"noise": 0.07, "older": 0.0, "sicker": 0.0, "women": 0.0, "atypical": 0.0},
    effects={
        "drift": shift("age", "trestbps", "chol", "oldpeak", unmeasured=_UNMEASURED),
        "bias": relabel("num", dict.fromkeys((1, 2, 3, 4), 0), group=("sex", 0)),
        "missing": empty("trestbps", "chol", "thalach", "oldpeak", "fbs", "exang"),
        "outliers": spike("trestbps", "chol", "thalach", "oldpeak", unmeasured=_UNMEASURED),
    },
)
