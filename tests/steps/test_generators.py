"""The heart disease generator: like the real set in columns, gaps, classes and signal."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bentos.features import derived_columns, feature_kinds
from models.config import SyntheticSource, load_model
from models.errors import ConfigError
from steps.generators import generate, heart_disease
from steps.ingest import ingest_frame

CONFIG = load_model("heart_disease").config


def _pipeline() -> Pipeline:
    kinds = feature_kinds(CONFIG)
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), [name for name in kinds if name not in numbers]),
    )
    return make_pipeline(derived_columns(CONFIG), prepare, LogisticRegression(max_iter=1000))


def test_the_same_seed_gives_the_same_rows_and_another_does_not() -> None:
    pd.testing.assert_frame_equal(heart_disease(500, 7, {}), heart_disease(500, 7, {}))
    assert not heart_disease(500, 7, {}).equals(heart_disease(500, 8, {}))


def test_gaps_stay_inside_what_the_yaml_allows_with_room() -> None:
    frame = ingest_frame(CONFIG).frame
    for name, column in CONFIG.columns.items():
        assert frame[name].isna().mean() <= max(0.0, column.missing - 0.03), name


def test_the_classes_are_mixed_as_in_the_real_set() -> None:
    shares = heart_disease(50_000, 1, {})["num"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(shares, [0.447, 0.288, 0.118, 0.116, 0.030], atol=0.03)


def test_a_simple_model_finds_a_plausible_signal() -> None:
    frame = ingest_frame(CONFIG).frame
    ill = frame["num"] == "disease"
    scores = cross_val_predict(_pipeline(), frame, ill, cv=5, method="predict_proba")[:, 1]
    assert 0.85 < roc_auc_score(ill, scores) < 0.93


def test_it_is_like_the_real_rows_and_a_model_of_it_scores_on_them(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    made, real = ingest_frame(CONFIG).frame, ingest_frame(CONFIG, "real").frame
    assert list(made.columns) == list(real.columns) and list(made.dtypes) == list(real.dtypes)
    np.testing.assert_allclose(made.isna().mean(), real.isna().mean(), atol=0.04)
    numbers = [name for name in made.columns if made[name].dtype == np.float64]
    spread = real[numbers].std()
    np.testing.assert_allclose((made[numbers].mean() - real[numbers].mean()) / spread, 0, atol=0.2)
    fitted = _pipeline().fit(made, made["num"] == "disease")
    assert roc_auc_score(real["num"] == "disease", fitted.predict_proba(real)[:, 1]) > 0.85
    full = [frame[frame.isna().sum(axis=1) < 3].drop(columns="num") for frame in (made, real)]
    assert full[0].merge(full[1], how="inner").empty, "no row of the real set (but for nearly empty ones, by chance)"


def test_knobs_move_the_population() -> None:
    plain, older = heart_disease(5000, 1, {}), heart_disease(5000, 1, {"older": 10})
    assert 8 < older["age"].mean() - plain["age"].mean() < 11
    assert heart_disease(5000, 1, {"sicker": 1})["num"].min() == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"generator": "hart_disease"}, "did you mean 'heart_disease'"), ({"knobs": {"noize": 1.0}}, "mean 'noise'")],
)
def test_an_unknown_generator_or_knob_is_named(changes: dict[str, object], said: str) -> None:
    source = SyntheticSource.model_validate(
        {"name": "s", "kind": "synthetic", "generator": "heart_disease", "rows": 5, **changes}
    )
    with pytest.raises(ConfigError, match=said):
        generate(source)
