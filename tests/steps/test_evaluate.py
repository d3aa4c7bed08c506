import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.explain import Explainer
from bentos.release import Release, write_release
from models.config import Layer, ModelConfig, resolve
from models.errors import DataError
from stacks import registry, runs
from steps.caching import parameter
from steps.compare import compare, unseen
from steps.evaluate import Evaluation, evaluate, evaluate_release, record
from steps.explanations import mean_effects, permutation_importance
from steps.families import build_pipeline
from steps.metrics import compute_metrics, greater_is_better
from steps.split import in_test, split_frame
from steps.train import fit_family
from steps.validate import QualityReport
from steps.verdict import judge
from tests.bentos.samples import frame_of
from tests.steps.arena import package_of
from tests.steps.learning import configured, noise, rows_of, toy


def released(
    folder: Path, config: ModelConfig, train: pd.DataFrame, family: Any = "logistic_regression", **params: Any
) -> Release:
    run_id = runs.start_run(config.name)
    return write_release(
        folder,
        pipeline=fit_family(config, family, params, train),
        config=config,
        train=train,
        metrics={"cv": 0.5},
        data_digest="d" * 64,
        trials=1,
        evidence={"mlflow_run": {"run_id": run_id}},
    )


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return released(tmp_path_factory.mktemp("heart") / "r", configured("heart_disease"), rows_of("heart_disease").train)


def test_the_first_model_stands_beside_the_simplest_ones(heart: Release) -> None:
    rows = rows_of("heart_disease")
    judged = evaluate_release(heart, rows.train, rows.test, 97.5)
    assert (judged.champion, judged.champion_version, judged.challenger_compared, judged.rows) == (None, None, None, 0)
    assert judged.test_rows == len(rows.test)
    assert judged.dummy == 0.5
    assert judged.linear == pytest.approx(judged.challenger["roc_auc"])
    assert judged.challenger["roc_auc"] > 0.8
    assert (judged.quality_score, judged.data_digest, judged.release_digest) == (97.5, "d" * 64, heart.digest)
    assert Evaluation.model_validate_json(judged.model_dump_json()) == judged


def test_the_linear_figure_is_that_of_the_plain_linear_pipeline(tmp_path: Path) -> None:
    rows, config = rows_of("heart_disease"), configured("heart_disease")
    stump = released(tmp_path / "r", config, rows.train, "xgboost", n_estimators=1, max_depth=1)
    judged = evaluate_release(stump, rows.train, rows.test, 100)
    assert judged.dummy < judged.challenger["roc_auc"] < judged.linear


def test_champion_and_challenger_get_the_same_rows_each_by_its_own_pipeline(heart: Release, tmp_path: Path) -> None:
    """The champion has another selection of columns and another preparation than the challenger."""
    rows, config = rows_of("heart_disease"), configured("heart_disease", features={"exclude": ["age", "chol", "thal"]})
    champion = released(tmp_path / "r", config, rows.train, "random_forest", n_estimators=20)
    judged = evaluate_release(heart, rows.train, rows.test, 100, champion, 4)
    truth = rows.test["num"].to_numpy()
    for figures, release in ((judged.champion, champion), (judged.challenger_compared, heart)):
        assert figures == compute_metrics(config, release.schema.labels, truth, release.answer(rows.test))
    assert (judged.rows, judged.champion_version, judged.notes) == (len(rows.test), 4, ())
    assert judged.paired is not None and judged.champion is not None and judged.challenger_compared is not None
    assert set(judged.differences) == set(judged.challenger) == set(judged.intervals)
    decides = judged.differences[config.metric]
    assert (decides.low, decides.high) == (judged.paired.low, judged.paired.high)
    for name, each in judged.differences.items():
        gain = judged.challenger_compared[name] - judged.champion[name]
        assert each.estimate == pytest.approx(gain if greater_is_better(name) else -gain)
        assert each.low < each.estimate < each.high


def test_a_champion_whose_release_cannot_be_read_leaves_the_challenger_to_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, frame = noise(300)
    split = split_frame(config, frame)
    released(tmp_path / "r", config, split.train)
    damaged = shutil.copytree(tmp_path / "r", tmp_path / "damaged")
    (damaged / "schema.json").write_text("{}")
    forgotten: list[bool] = []
    monkeypatch.setattr(registry, "release_dir", lambda *_: damaged)
    monkeypatch.setattr("steps.evaluate.forget", lambda: forgotten.append(True))
    report = QualityReport(score=100, rows=300, checks=())
    judged = evaluate.entrypoint(
        parameter(config.model_dump(mode="json")), tmp_path / "r", split.train, split.test, report, 1
    )
    assert judged.champion is None and judged.rows == 0
    assert "the Release of v1 cannot be read: " in judged.notes[0] and "schema.json" in judged.notes[0]
    verdict = judge(config.model_copy(update={"gates": {}}), judged, package_of(2, "toy"), 1)
    improvement = next(gate for gate in verdict.gates if gate.name == "improvement")
    assert (improvement.verdict, judged.champion_version) == ("skipped", 1)
    assert "the Release of v1 cannot be read" in improvement.reason
    assert forgotten == [True], "the next run on the same rows tries again"


def test_rows_that_an_older_champion_was_trained_on_are_left_out(heart: Release, tmp_path: Path) -> None:
    frame, rows = frame_of("heart_disease"), rows_of("heart_disease")
    config = configured("heart_disease").model_copy(update={"seed": 7})
    theirs = split_frame(config, frame)
    champion = released(tmp_path / "r", config, theirs.train)
    judged = evaluate_release(heart, rows.train, rows.test, 100, champion, 1)
    both = in_test(config, rows.test)
    assert judged.rows == both.sum() < len(rows.test)
    assert judged.notes == (f"v1 was trained on {len(rows.test) - judged.rows} of {len(rows.test)} test rows",)
    keys = pd.util.hash_pandas_object(rows.test[both], index=False)
    seen = set(pd.util.hash_pandas_object(theirs.train[list(rows.test)], index=False))
    assert not seen & set(keys)


def test_a_champion_that_was_trained_on_all_test_rows_is_not_compared(heart: Release, tmp_path: Path) -> None:
    rows, config = rows_of("heart_disease"), configured("heart_disease").model_copy(update={"seed": 7})
    champion = released(tmp_path / "r", config, split_frame(config, frame_of("heart_disease")).train)
    seen = rows.test[~in_test(config, rows.test)]
    compared = compare(heart.config, heart, champion, "v1", seen)
    assert (compared.rows, compared.champion) == (0, None)
    assert compared.notes == (f"v1 was trained on all {len(seen)} test rows",)


def test_a_champion_that_can_read_too_few_rows_is_said_not_a_crash(heart: Release, tmp_path: Path) -> None:
    rows, config = rows_of("heart_disease"), configured("heart_disease")
    champion = released(tmp_path / "r", config, rows.train)
    narrow = rows.test.drop(columns=["thal", "ca"])
    described = config.model_dump(mode="json", exclude={"evaluation"})
    small = resolve([Layer("test", {**described, "columns": _without(config, "thal", "ca")})]).config
    challenger = released(tmp_path / "c", small, rows.train.drop(columns=["thal", "ca"]))
    judged = evaluate_release(challenger, rows.train.drop(columns=["thal", "ca"]), narrow, 100, champion, 2)
    assert (judged.champion, judged.champion_version, judged.rows) == (None, 2, 0)
    gone = "v2 reads ca, thal as missing: there is no such column any more"
    assert judged.notes == (gone, "103 rows are left to compare on, at least 200 are asked")
    assert judged.challenger["roc_auc"] > 0.7


def _without(config: ModelConfig, *names: str) -> dict[str, Any]:
    return {n: c.model_dump(mode="json", exclude_defaults=True) for n, c in config.columns.items() if n not in names}


def test_a_champion_with_other_classes_is_scored_by_label(tmp_path: Path) -> None:
    config, rows = configured("wine"), rows_of("wine")
    two = rows.train[rows.train["target"] != "class_1"].reset_index(drop=True)
    champion = released(tmp_path / "r", config, two)
    challenger = released(tmp_path / "c", config, rows.train)
    compared = compare(config, challenger, champion, "v1", rows.test)
    assert compared.champion is not None and compared.challenger is not None
    share = float(np.mean(rows.test["target"] != "class_1"))
    assert compared.champion["accuracy"] == pytest.approx(share, abs=0.1)
    assert compared.challenger["accuracy"] > 0.9
    assert compared.notes == ("v1 knows the classes class_0, class_2",)


def test_rows_that_do_not_allow_the_metric_are_said(heart: Release) -> None:
    test = rows_of("heart_disease").test
    ill = test[test["num"] == "disease"]
    compared = compare(heart.config, heart, heart, "v1", ill)
    assert compared.champion is None
    assert "roc_auc cannot be computed on" in compared.notes[0]
    with pytest.raises(DataError, match="roc_auc cannot be computed on"):
        evaluate_release(heart, rows_of("heart_disease").train, ill, 100)


def test_by_time_only_what_is_newer_than_all_its_training_rows_is_unseen(tmp_path: Path) -> None:
    columns = {"a": {"type": "number"}, "day": {"type": "datetime"}}
    config = toy(columns, split={"by": "time", "column": "day"})
    frame = (
        noise(100)[1].drop(columns="b").assign(day=pd.date_range("2024-01-01", periods=100).astype("datetime64[ns]"))
    )
    old = released(tmp_path / "r", config, split_frame(config, frame.iloc[:60]).train)
    split = split_frame(config, frame)
    assert unseen(old, frame).tolist() == [False] * int((~unseen(old, frame)).sum()) + [True] * int(
        unseen(old, frame).sum()
    )
    assert unseen(old, split.test).all()
    assert not unseen(old, frame.iloc[:40]).any()
    with pytest.raises(DataError, match="no column 'day'"):
        unseen(old, frame.drop(columns="day"))


@lru_cache
def driven() -> tuple[ModelConfig, pd.DataFrame]:
    config, frame = noise(200)
    frame["y"] = np.where(frame["a"] > 0, "yes", "no").astype(object)
    return config, frame


def test_importance_finds_the_column_that_matters_and_repeats(tmp_path: Path) -> None:
    config, frame = driven()
    release = released(tmp_path / "r", config, frame)
    importance = permutation_importance(release, frame)
    assert list(importance) == ["a", "b"]
    assert importance["a"] > 0.3 > abs(importance["b"])
    assert permutation_importance(release, frame) == importance
    loss = config.model_copy(update={"metric": "log_loss"})
    other = released(tmp_path / "l", loss, frame)
    assert permutation_importance(other, frame)["a"] > 0.3


def test_mean_effects_are_those_of_the_served_explanations(tmp_path: Path) -> None:
    config, frame = driven()
    release = released(tmp_path / "r", config, frame)
    explainer = Explainer.of(release)
    effects = mean_effects(release, explainer, frame)
    assert list(effects) == ["a", "b"]
    assert effects["a"] > 5 * effects["b"]
    told = explainer.explain(frame, release.answer(frame), 2)
    of_a = [part.effect for one in told for part in one.contributions if part.column == "a"]
    assert effects["a"] == pytest.approx(np.abs(of_a).mean())


CLASSES = {"confusion_matrix.png", "roc.png", "precision_recall.png", "calibration.png"}
RESIDUALS = {"residuals.png", "residual_spread.png"}


@pytest.mark.parametrize(
    ("model", "plots"),
    [("heart_disease", CLASSES | {"slices.png", "fairness.png"}), ("wine", CLASSES), ("houses", RESIDUALS)],
)
def test_figures_and_plots_go_to_the_run(model: str, plots: set[str], tmp_path: Path) -> None:
    config, rows = configured(model), rows_of(model)
    family = "linear_regression" if model == "houses" else "logistic_regression"
    release = released(tmp_path / "r", config, rows.train, family)
    judged = record(evaluate_release(release, rows.train, rows.test, 88.0, release, 3), release, rows.test)
    store = registry.client()
    run = store.get_run(judged.mlflow_run_id)
    assert run.data.metrics[f"test_{config.metric}"] == judged.challenger[config.metric]
    assert {f"test_{config.metric}_dummy", f"test_{config.metric}_linear", "quality_score"} <= set(run.data.metrics)
    for name, ends in judged.intervals.items():
        logged = (run.data.metrics[f"test_{name}_low"], run.data.metrics[f"test_{name}_high"])
        assert logged == (ends.low, ends.high)
    files = {Path(entry.path).name: entry for entry in store.list_artifacts(judged.mlflow_run_id, "evaluation")}
    told_of_columns = {"importance.png", "importance.json", "effects.png", "effects.json", "dependence"}
    assert set(files) == plots | told_of_columns | {"evaluation.json", "facts.json", "holdout.npz"}
    for name in (*plots, "effects.png"):
        picture = Path(store.download_artifacts(judged.mlflow_run_id, f"evaluation/{name}", str(tmp_path)))
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000
    told = json.loads(
        Path(store.download_artifacts(judged.mlflow_run_id, "evaluation/evaluation.json", str(tmp_path))).read_text()
    )
    assert Evaluation.model_validate_json(json.dumps(told)) == judged


def test_a_tie_is_a_tie(heart: Release) -> None:
    rows = rows_of("heart_disease")
    judged = evaluate_release(heart, rows.train, rows.test, 100, Release.open(heart.directory), 1)
    assert judged.champion == judged.challenger_compared == judged.challenger


def test_the_rows_are_left_as_they_were(heart: Release) -> None:
    rows = rows_of("heart_disease")
    before = rows.test.copy(deep=True)
    evaluate_release(heart, rows.train, rows.test, 100, heart, 1)
    permutation_importance(heart, rows.test)
    pd.testing.assert_frame_equal(rows.test, before)


def test_the_pipeline_that_is_scored_takes_raw_rows() -> None:
    config = configured("heart_disease")
    assert [name for name, _ in build_pipeline(config, "xgboost", {}).steps] == ["features", "prepare", "model"]
