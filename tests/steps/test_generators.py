"""The generators: like the real sets in columns, gaps, classes and signal; every knob does what it says and no more."""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.pipeline import Pipeline

from bentos.inputs import examine
from bentos.schema import encode, labels_of
from models.config import ModelConfig, SyntheticSource, load_model
from models.errors import ConfigError
from steps.generators import GENERATORS, generate
from steps.generators.knobs import EFFECTS, START
from steps.ingest import ingest_frame
from steps.train import fit_family

CONFIG = load_model("heart_disease").config
TABLES = ("heart_disease", "obesity", "personality")
Array = np.ndarray[Any, Any]


def _make(name: str, rows: int = 2000, seed: int = 1, **knobs: float) -> pd.DataFrame:
    return GENERATORS[name].make(rows, seed, knobs)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_gives_the_same_rows_and_another_does_not(name: str) -> None:
    pd.testing.assert_frame_equal(_make(name, 300), _make(name, 300))
    assert not _make(name, 300).equals(_make(name, 300, seed=2))


def test_a_seed_gives_the_same_patients_for_ever() -> None:
    """A champion's test rows must stay the ones it was not trained on."""
    frame = _make("heart_disease", 5, seed=7)
    assert frame.iloc[0].dropna().tolist() == [36, 1, 4, 142, 242, 0, 0, 143, 0, 0.8, 1, 1, "hungarian"]


def test_gaps_stay_inside_what_the_yaml_allows_with_room() -> None:
    frame = ingest_frame(CONFIG).frame
    for name, column in CONFIG.columns.items():
        assert frame[name].isna().mean() <= max(0.0, column.missing - 0.03), name


def test_the_classes_are_mixed_as_in_the_real_sets() -> None:
    shares = _make("heart_disease", 50_000)["num"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(shares, [0.447, 0.288, 0.118, 0.116, 0.030], atol=0.03)
    levels = _make("obesity", 50_000)["NObeyesdad"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(levels, [0.129, 0.136, 0.166, 0.141, 0.153, 0.137, 0.137], atol=0.01)
    assert abs((_make("personality", 50_000)["Personality"] == "Introvert").mean() - 0.486) < 0.01


def test_many_people_give_the_same_seven_answers() -> None:
    assert 0.11 < _make("personality", 2900).duplicated().mean() < 0.17, "13.9 % in the real set"


def test_height_and_weight_almost_determine_the_level_and_habits_lean_on_it() -> None:
    """Macro F1 of the plain linear model with them, and without."""
    assert 0.90 < _linear_score("obesity") < 0.97
    assert 0.35 < _linear_score("obesity_habits") < 0.60


def test_a_simple_model_finds_a_plausible_signal() -> None:
    assert 0.85 < _linear_score("heart_disease") < 0.93
    assert 0.89 < _linear_score("personality") < 0.95


@lru_cache
def _learnt(model: str) -> tuple[ModelConfig, Pipeline, tuple[str, ...]]:
    """A model's configuration, the plain linear pipeline of its generator's rows, and their classes."""
    config = load_model(model).config
    made = ingest_frame(config).frame
    return config, fit_family(config, "logistic_regression", {}, made), labels_of(config, made)


def _score(model: str, rows: pd.DataFrame) -> float:
    """What that pipeline scores on other rows: ROC AUC where the model goes by it, else macro F1."""
    config, fitted, labels = _learnt(model)
    truth = encode(labels, rows[config.target.column])
    if config.metric == "roc_auc":
        return float(roc_auc_score(truth, fitted.predict_proba(rows)[:, 1]))
    return float(f1_score(truth, fitted.predict(rows), average="macro"))


def _linear_score(model: str) -> float:
    """The same on rows of another seed."""
    config = load_model(model).config
    source = config.sources[0]
    assert isinstance(source, SyntheticSource)
    other = config.model_copy(update={"sources": (source.model_copy(update={"seed": 8}),)})
    return _score(model, ingest_frame(other).frame)


@pytest.mark.parametrize(
    ("model", "path", "least"),
    [
        ("heart_disease", "heart_disease/heart_all_920.csv", 0.85),
        ("obesity", "obesity/obesity.csv", 0.85),
        ("obesity_habits", "obesity/obesity.csv", 0.42),
        ("personality", "personality/personality.csv", 0.88),
    ],
)
def test_a_model_of_the_generator_takes_the_real_rows_and_scores_on_them(
    model: str, path: str, least: float, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shared_data / path).is_file():
        pytest.skip(f"no {path} in GAUNTLET_DATA")
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = load_model(model).config
    made, real = ingest_frame(config).frame, ingest_frame(config, "real").frame
    assert list(made.columns) == list(real.columns) and list(made.dtypes) == list(real.dtypes)
    inputs = {name: config.columns[name] for name in config.input_names()}
    assert examine(real, inputs) == [] and examine(made, inputs) == [], "ranges and categories hold for both"
    np.testing.assert_allclose(made.isna().mean(), real.isna().mean(), atol=0.04)
    numbers = [name for name in made.columns if made[name].dtype == np.float64]
    np.testing.assert_allclose((made[numbers].mean() - real[numbers].mean()) / real[numbers].std(), 0, atol=0.2)
    assert _score(model, real) > least


@pytest.mark.parametrize(("name", "path"), [("heart_disease", "heart_all_920"), ("obesity", "obesity")])
def test_no_row_of_the_real_set_is_copied(
    name: str, path: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but nearly empty rows, which come about by chance."""
    real = shared_data / name / f"{path}.csv"
    if not real.is_file():
        pytest.skip(f"no {path} in GAUNTLET_DATA")
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = load_model(name).config
    frames = [ingest_frame(config, which).frame for which in (None, "real")]
    full = [frame[frame.isna().sum(axis=1) < 3].drop(columns=config.target.column) for frame in frames]
    assert full[0].merge(full[1], how="inner").empty


def test_own_knobs_move_the_population() -> None:
    plain, older = _make("heart_disease", 5000), _make("heart_disease", 5000, older=10)
    assert 8 < older["age"].mean() - plain["age"].mean() < 11
    assert _make("heart_disease", sicker=1)["num"].min() == 1
    blind = _make("personality", noise=0.5)
    assert abs((blind["Stage_fear"] == "Yes")[blind["Personality"] == "Introvert"].mean() - 0.5) < 0.06


def _above(column: str) -> Callable[[pd.DataFrame, Array], Array]:
    return lambda frame, _: frame[column].to_numpy(np.float64)


def _gone(column: str) -> Callable[[pd.DataFrame, Array], Array]:
    return lambda frame, _: frame[column].isna().to_numpy(np.float64)


def _wild(column: str) -> Callable[[pd.DataFrame, Array], Array]:
    """1 beyond Tukey's outer fence of the rows `before`, else 0."""

    def measure(frame: pd.DataFrame, before: Array) -> Array:
        low, high = frame[column][before].quantile([0.25, 0.75])
        return (frame[column] > high + 3 * (high - low)).to_numpy(np.float64)

    return measure


def _positive(target: str, negative: tuple[Any, ...], group: tuple[str, Any]) -> Callable[[pd.DataFrame, Array], Array]:
    """1 for a positive label, 0 for a negative one, NaN outside the group."""

    def measure(frame: pd.DataFrame, _: Array) -> Array:
        inside = frame[group[0]] == group[1]
        return np.where(inside, ~frame[target].isin(negative), np.nan)

    return measure


THIN = ("Insufficient_Weight", "Normal_Weight", "Overweight_Level_I", "Overweight_Level_II")
MEASURES: dict[tuple[str, str], Callable[[pd.DataFrame, Array], Array]] = {
    ("heart_disease", "drift"): _above("age"),
    ("heart_disease", "bias"): _positive("num", (0,), ("sex", 0)),
    ("heart_disease", "missing"): _gone("thalach"),
    ("heart_disease", "outliers"): _wild("chol"),
    ("obesity", "drift"): _above("Weight"),
    ("obesity", "bias"): _positive("NObeyesdad", THIN, ("Gender", "Female")),
    ("obesity", "missing"): _gone("CAEC"),
    ("obesity", "outliers"): _wild("Height"),
    ("personality", "drift"): _above("Time_spent_Alone"),
    ("personality", "bias"): _positive("Personality", ("Extrovert",), ("Stage_fear", "Yes")),
    ("personality", "missing"): _gone("Stage_fear"),
    ("personality", "outliers"): _wild("Friends_circle_size"),
}
SIZES = {"drift": 1.5, "bias": 0.8, "missing": 0.1, "outliers": 0.05}
FAR = 6.0


def _z(values: Array, before: Array) -> float:
    """Welch's statistic of the mean after against the mean before, NaN left out."""
    old, new = (side[~np.isnan(side)] for side in (values[before], values[~before]))
    spread = math.sqrt(old.var() / len(old) + new.var() / len(new))
    return float((new.mean() - old.mean()) / spread) if spread else 0.0


@pytest.mark.parametrize(("name", "effect"), MEASURES)
def test_a_planted_effect_is_measurable_from_its_day_on_and_absent_without(name: str, effect: str) -> None:
    """Six standard errors: by chance once in 500 million. Without the knob the same figure stays below four."""
    clean = _make(name, 6000, days=60)
    planted = _make(name, 6000, days=60, **{effect: SIZES[effect], f"{effect}_from": 30})
    before = (clean["at"] < START + pd.Timedelta(days=30)).to_numpy()
    measure = MEASURES[name, effect]
    assert abs(_z(measure(clean, before), before)) < 4
    assert (-1 if effect == "bias" else 1) * _z(measure(planted, before), before) > FAR
    pd.testing.assert_frame_equal(planted[before], clean[before], check_dtype=False)


@pytest.mark.parametrize("name", TABLES)
def test_the_size_of_an_effect_is_the_knobs(name: str) -> None:
    clean, everywhere = _make(name, 20_000), np.zeros(20_000, dtype=bool)

    def mean(effect: str, frame: pd.DataFrame) -> float:
        return float(np.nanmean(MEASURES[name, effect](frame, ~everywhere)))

    planted = {effect: _make(name, 20_000, **{effect: size}) for effect, size in SIZES.items()}
    spread = np.nanstd(MEASURES[name, "drift"](clean, everywhere))
    assert abs((mean("drift", planted["drift"]) - mean("drift", clean)) / spread - 1.5) < 0.05
    assert abs(mean("bias", planted["bias"]) / mean("bias", clean) - 0.2) < 0.05
    left = (1 - mean("missing", planted["missing"])) / (1 - mean("missing", clean))
    assert abs(left - 0.9) < 0.01
    assert 0.02 < mean("outliers", planted["outliers"]) - mean("outliers", clean) < 0.055


@pytest.mark.parametrize("name", TABLES)
def test_drift_grows_to_the_last_day(name: str) -> None:
    clean, drifting = _make(name, 8000, days=40), _make(name, 8000, days=40, drift=2, drift_from=20)
    moved = MEASURES[name, "drift"](drifting, np.zeros(0)) - MEASURES[name, "drift"](clean, np.zeros(0))
    quarters = [np.nanmean(moved[start : start + 2000]) for start in range(0, 8000, 2000)]
    assert quarters[0] == quarters[1] == 0 < quarters[2] < quarters[3]
    assert 2.5 < quarters[3] / quarters[2] < 3.5


@pytest.mark.parametrize("name", TABLES)
def test_an_effect_touches_only_its_columns_and_whole_numbers_stay_whole(name: str) -> None:
    clean = _make(name)
    planted = _make(name, drift=0.7, outliers=0.1, bias=0.3, missing=0.1)
    target, group = {"heart_disease": ("num", "sex"), "obesity": ("NObeyesdad", "Gender")}.get(
        name, ("Personality", "Stage_fear")
    )
    changed = {column for column in clean if not planted[column].equals(clean[column])}
    assert target in changed and (group not in changed or group == "Stage_fear")
    assert {"site", "sex", "ca", "SMOKE"}.isdisjoint(changed)
    for column in clean.select_dtypes("number"):
        known = clean[column].dropna()
        if (known == known.round()).all():
            assert (planted[column].dropna() % 1 == 0).all(), column
    if name == "heart_disease":
        unmeasured = clean["chol"] == 0
        assert planted["chol"][unmeasured].dropna().eq(0).all(), "0 means that nothing was measured"


def test_dated_rows_are_spread_evenly_and_can_be_split_by_time() -> None:
    frame = _make("heart_disease", 1000, days=10)
    assert frame["at"].is_monotonic_increasing and frame["at"].iloc[0] == START
    assert (frame["at"].dt.floor("D").value_counts() == 100).all()
    pd.testing.assert_frame_equal(frame.drop(columns="at"), _make("heart_disease", 1000))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator": "hart_disease"}, "did you mean 'heart_disease'"),
        ({"knobs": {"noize": 1.0}}, "mean 'noise'"),
        ({"knobs": {"drift_form": 1.0}}, "mean 'drift_from'"),
        ({"knobs": {"bias": 1.5}}, "'bias' is a share from 0 to 1"),
        ({"knobs": {"missing": -0.1}}, "'missing' is a share from 0 to 1"),
        ({"knobs": {"days": -1.0}}, "'days' must not be negative"),
        ({"knobs": {"drift": 1.0, "drift_from": 3.0}}, "day 3, and the rows cover 0 days; set the knob 'days'"),
        ({"knobs": {"days": 5.0, "missing_from": 5.0}}, "'missing_from' is day 5, and the rows cover 5 days"),
        ({"knobs": {"drift": math.inf}}, "'drift' must be a finite number"),
    ],
)
def test_an_unknown_generator_or_knob_is_named(changes: dict[str, object], said: str) -> None:
    source = SyntheticSource.model_validate(
        {"name": "s", "kind": "synthetic", "generator": "heart_disease", "rows": 5, **changes}
    )
    with pytest.raises(ConfigError, match=said):
        generate(source)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_knows_every_effect(name: str) -> None:
    assert set(GENERATORS[name].effects) == set(EFFECTS)
