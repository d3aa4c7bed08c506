"""A text column through the whole house: typed, checked, split, learnt, judged; and answers that may be withheld."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import issparse

from bentos.inputs import plain_rows
from bentos.release import Answers, Release, write_release
from models.config import Family, ModelConfig, Serving
from models.errors import ConfigError, DataError
from stacks import registry, runs
from steps.explanations import permutation_importance
from steps.families import build_pipeline
from steps.ingest import ingest_frame
from steps.metrics import compute_metrics, metric_names, require_metric
from steps.register import register_release
from steps.split import split_frame
from steps.train import fit_family
from steps.validate import validate_frame
from steps.verdict import require_gates
from tests.bentos.samples import PARAMETERS
from tests.steps.learning import configured, rows_of, toy
from tests.steps.tables import make_config

LONG = 400_000


def release_of(
    folder: Path, config: ModelConfig, train: pd.DataFrame, family: Family = "logistic_regression"
) -> Release:
    pipeline = fit_family(config, family, PARAMETERS[family], train)
    return write_release(
        folder, pipeline=pipeline, config=config, train=train, metrics={}, data_digest="d" * 64, trials=0, evidence={}
    )


def letters(rows: int = 240) -> tuple[ModelConfig, pd.DataFrame]:
    """Texts and a number that both tell the class, with every kind of text that a source may hold."""
    rng = np.random.default_rng(3)
    positive = np.arange(rows) % 2 == 0
    words = np.where(positive, "refund broken late", "thanks great fast").astype(object)
    texts = np.array([f"order {n} of {rng.integers(9)} days: {word}" for n, word in enumerate(words)], dtype=object)
    texts[:6] = [
        np.nan,
        "é ß 日本語",
        "\x00\x07 control \x1b[31mred\x1b[0m",
        "5" * 20,
        "word " * (LONG // 5),
        "x" * LONG,
    ]
    kind = rng.choice(np.array(["a", "b"], dtype=object), rows)
    frame = pd.DataFrame({"said": texts, "size": rng.normal(positive, 1.0), "kind": kind})
    frame["y"] = np.where(positive, "yes", "no").astype(object)
    columns = {"said": {"type": "text", "missing": 0.1}, "size": {"type": "number"}, "kind": {"type": "category"}}
    return toy(columns, derived={"log_size": {"log": "size"}}), frame


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_text_and_other_columns_are_learnt_together_by_every_family(family: Family, tmp_path: Path) -> None:
    config, frame = letters()
    before = frame.copy(deep=True)
    prepared = build_pipeline(config, family, {})[:-1].fit_transform(frame)
    assert issparse(prepared) and prepared.format == "csr" and prepared.dtype == np.float64
    release = release_of(tmp_path / "r", config, frame, family)
    answers = release.answer(frame)
    assert (answers.values == frame["y"].to_numpy()).mean() > 0.95
    alone = [release.answer(frame.iloc[[row]]).probabilities for row in range(8)]
    np.testing.assert_allclose(np.concatenate(alone), answers.probabilities[:8], atol=1e-12)  # type: ignore[arg-type,index]
    assert permutation_importance(release, frame)["said"] > 0.2
    pd.testing.assert_frame_equal(frame, before)


def test_long_texts_make_no_large_release(tmp_path: Path) -> None:
    config, frame = letters()
    frame.loc[6:, "said"] = frame["said"][6:] + " filler" * (LONG // 7)
    release = release_of(tmp_path / "r", config, frame)
    assert release.reference()["said"].str.len().max() <= 8_000_000 // len(frame)
    assert max(len(row.inputs["said"] or "") for row in release.golden) == 2_000
    assert release.reference_summary["columns"]["said"]["quantiles"]["0.5"] > LONG - 10
    assert sum(path.stat().st_size for path in release.directory.rglob("*") if path.is_file()) < 5_000_000


def test_checks_of_texts_hold_counts_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    config, frame = letters(1_200)
    frame.loc[:599, "said"] = [f"secret{n} " * size for n, size in enumerate((50_000, 500, 800))] * 200
    caplog.set_level(logging.DEBUG)
    report = validate_frame(config, frame, frame.assign(said=[f"secret {'x' * (n % 9)}" for n in range(1_200)]))
    assert {check.name for check in report.checks if check.column == "said"} >= {"type", "missing", "constant", "drift"}
    drift = next(check for check in report.checks if check.key == "drift:said")
    assert not drift.passed, "lengths moved"
    assert "secret" not in report.model_dump_json() + caplog.text


@pytest.mark.parametrize("texts", [np.nan, "", " \n"])
def test_a_source_without_any_text_stops_with_words(texts: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"said": texts, "size": rng.normal(size=200), "y": rng.choice(["no", "yes"], 200)})
    table.to_csv(tmp_path / "x.csv", index=False)
    columns = {"said": {"type": "text", "missing": 1.0}, "size": {"type": "number"}}
    config = make_config(tmp_path / "x.csv", columns=columns)
    with pytest.raises(DataError, match="empty:said"):
        validate_frame(config, ingest_frame(config).frame)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le"])
def test_texts_in_any_encoding_are_the_same_texts(encoding: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [f'Größe "{n}", café\nligne deux: échec' if n % 7 else "" for n in range(100)]
    table = pd.DataFrame({"said": texts, "y": rng.choice(["no", "yes"], 100)})
    table.to_csv(tmp_path / "x.csv", index=False, encoding=encoding)
    source = {"name": "file", "kind": "csv", "path": str(tmp_path / "x.csv"), "encoding": encoding}
    config = make_config(columns={"said": {"type": "text", "missing": 0.2}}, sources=[source])
    frame = ingest_frame(config).frame
    assert [text for text in frame["said"] if text == text] == [text for text in texts if text]


def test_the_default_pipeline_reaches_095_on_templates_that_it_never_saw() -> None:
    config, rows = configured("pipeline_errors"), rows_of("pipeline_errors")
    pipeline = fit_family(config, "logistic_regression", {}, rows.train)
    labels = np.array(config.target.labels, dtype=object)
    assert (labels[pipeline.predict(rows.test)] == rows.test["error_category"]).mean() >= 0.95


def test_words_that_no_training_log_had_are_where_it_fails() -> None:
    """The knob `new_templates` shows that the figure comes from wording that classes share, not from anything else."""
    from steps.generators import GENERATORS

    config, rows = configured("pipeline_errors"), rows_of("pipeline_errors")
    pipeline = fit_family(config, "logistic_regression", {}, rows.train)
    labels = np.array(config.target.labels, dtype=object)
    made = GENERATORS["pipeline_errors"].make(400, 11, {"new_templates": 1.0, "label_noise": 0.0})
    made = made[made["repo"].isin(rows.test["repo"])]
    assert (labels[pipeline.predict(made)] == made["error_category"]).mean() < 0.6


def test_share_answered_and_their_accuracy_are_figures_and_gates() -> None:
    config = configured("pipeline_errors", serving={"abstain_below": 0.6}, gates={"accuracy_answered": {"min": 0.9}})
    require_gates(config)
    assert {"answered", "accuracy_answered"} <= set(metric_names(config, config.target.labels))
    truth = np.array(["other", "other", "dependency", "dependency"], dtype=object)
    shares = np.zeros((4, 6))
    shares[:, 1], shares[:, 2] = (0.9, 0.55, 0.6, 0.3), (0.1, 0.45, 0.4, 0.7)
    said = np.array(config.target.labels, dtype=object)[shares.argmax(axis=1)]
    figures = compute_metrics(config, config.target.labels, truth, Answers(said, shares))
    assert (figures["answered"], figures["accuracy"]) == (0.75, 0.75)
    assert figures["accuracy_answered"] == pytest.approx(2 / 3)
    never = configured("pipeline_errors", serving={"abstain_below": 1.0})
    none = compute_metrics(never, config.target.labels, truth, Answers(said, shares))
    assert none["answered"] == 0.0 and "accuracy_answered" not in none
    always = config.model_copy(update={"serving": Serving()})
    assert "answered" not in compute_metrics(always, config.target.labels, truth, Answers(said, shares))
    with pytest.raises(ConfigError, match="nothing measures 'answered'"):
        require_gates(configured("wine", gates={"answered": {"min": 0.9}}))
    with pytest.raises(ConfigError, match="'answered' is no figure"):
        require_metric(configured("pipeline_errors", metric="answered"))
    with pytest.raises(ConfigError, match="a regression answers without probabilities"):
        configured("houses", serving={"abstain_below": 0.5})


def test_mlflow_abstains_where_the_release_does(tmp_path: Path) -> None:
    import mlflow.pyfunc

    config, frame = letters()
    config = config.model_copy(update={"name": "unsure", "serving": Serving(abstain_below=0.9)})
    release = release_of(tmp_path / "r", config, frame)
    number = register_release(tmp_path / "r", runs.start_run("unsure"))
    registry.mirror("unsure", champion=number, previous=None, challenger=None)
    loaded = mlflow.pyfunc.load_model("models:/unsure@champion")
    raw = pd.DataFrame(plain_rows(frame.iloc[6:], release.schema.inputs))
    said, answers = loaded.predict(raw), release.answer(frame.iloc[6:])
    assert answers.abstained is not None and 0 < answers.abstained.sum() < len(raw)
    assert said["abstained"].tolist() == answers.abstained.tolist()
    assert said["prediction"].tolist() == answers.told.tolist()
    assert said["prediction"].isna().tolist() == answers.abstained.tolist()
    names = loaded.metadata.signature.outputs.input_names()
    assert names == ["prediction", "abstained", "probabilities"]


def test_a_class_of_a_few_rows_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    rare = make_config(target={"column": "y", "labels": ["no", "yes", "once"]}, columns={"size": {"type": "number"}})
    frame = pd.DataFrame({"size": rng.random(300), "y": ["once", *["no", "yes"] * 149, "no"]})
    parts = split_frame(rare, frame)
    assert "1 classes of fewer than 5 rows are missing in the" in caplog.text
    assert len(set(parts.train["y"]) ^ set(parts.test["y"])) == 1
    frame.loc[:4, ["size", "y"]] = [0.5, "once"]  # equal rows stay together
    with pytest.raises(DataError, match="class 'once' is missing"):
        split_frame(rare, frame)


def test_the_real_logs_are_read_checked_and_split_by_repository(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("pipeline_errors")
    if not (shared_data / config.source("real").path).is_file():
        pytest.skip("the real logs are not there")
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    ingested = ingest_frame(config, "real")
    assert (len(ingested.frame), len(ingested.quarantined)) == (740, 47)
    assert validate_frame(config, ingested.frame).score >= 80
    parts = split_frame(config, ingested.frame)
    assert set(parts.train["repo"]).isdisjoint(parts.test["repo"])
    release = fit_family(config, "logistic_regression", {}, parts.train)
    labels = np.array(config.target.labels, dtype=object)
    shares = release.predict_proba(parts.test)
    said = Answers(labels[shares.argmax(axis=1)], shares)
    figures = compute_metrics(config, config.target.labels, parts.test["error_category"].to_numpy(), said)
    commonest = parts.test["error_category"].value_counts(normalize=True).iloc[0]
    assert commonest < figures["accuracy"] < figures["accuracy_answered"]
    assert 0.2 < figures["answered"] < 1
