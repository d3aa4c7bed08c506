"""The champion that is watched: from ledger, MLflow and its holdout; and what a look at it leaves there."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.config import ModelConfig
from models.monitoring import Monitoring
from stacks import runs
from stacks.findings import read_findings
from stacks.ledger import Ledger, open_ledger
from steps.champion import Champion, champion_of
from steps.evaluate import Evaluation, evaluate_release, record
from steps.holdout import HOLDOUT, MOST, Holdout, draw_holdout, read_holdout, write_holdout
from steps.monitor import folder_of, keep, run_checks
from steps.performance import Performance
from steps.promote import decide
from steps.register import register_release
from steps.watch import watch_of
from tests.steps.arena import package_of
from tests.steps.learning import configured, rows_of
from tests.steps.test_evaluate import released
from tests.steps.watching import MODEL, TARGET, arrivals, serve, tell


@pytest.fixture(scope="module")
def ledger_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'gauntlet.db'}"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, ledger_url: str) -> Evaluation:
    """A champion in the real MLflow store and in a ledger of its own."""
    config, rows = configured(MODEL, gates={"tpr_gap": {"max": 0.6, "blocking": True}}), rows_of(MODEL)
    release = released(tmp_path_factory.mktemp("release") / "r", config, rows.train)
    evaluation = record(evaluate_release(release, rows.train, rows.test, 95.0), release, rows.test)
    version = register_release(release.directory, evaluation.mlflow_run_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAUNTLET_DATABASE", ledger_url)
        verdict = decide(config, evaluation, package_of(version, MODEL))
        assert verdict.decision == "promoted", verdict.reason
    return evaluation


@pytest.fixture
def champion(judged: Evaluation, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Champion:
    monkeypatch.setenv("GAUNTLET_DATABASE", ledger_url)
    return champion_of(_today(), open_ledger())


def _today() -> ModelConfig:
    """The YAML of a later day, that asks for more rows and names another metric."""
    config = configured(MODEL, metric="accuracy")
    return config.model_copy(update={"monitoring": Monitoring(min_rows=600), "gates": {}})


def test_a_champion_is_as_it_was_trained_and_watched_as_today(champion: Champion, judged: Evaluation) -> None:
    assert champion.config.metric == "roc_auc" == champion.release.config.metric
    assert champion.config.monitoring.min_rows == 600 and champion.config.gates == {}
    assert champion.metrics == judged.challenger and champion.run_id == judged.mlflow_run_id
    assert judged.effects is not None and champion.weights == {k: v for k, v in judged.effects.items() if v > 0}
    assert champion.holdout is not None and champion.holdout_gap is not None
    assert len(champion.holdout.truth) == judged.test_rows and abs(champion.holdout_gap) < 0.1


def test_a_champion_that_mlflow_knows_no_more_is_watched_by_what_the_ledger_keeps(
    judged: Evaluation, ledger_url: str, tmp_path: Path
) -> None:
    known = Ledger(ledger_url).history(MODEL)[0]
    elsewhere = Ledger(f"sqlite:///{tmp_path / 'other.db'}")
    elsewhere.append("promote", MODEL, known.version, payload={**known.payload, "mlflow_run_id": "0" * 32})
    found = champion_of(_today(), elsewhere)
    assert (found.run_id, found.holdout, found.holdout_gap, dict(found.weights)) == ("", None, None, {})
    assert found.metrics == {k: v for k, v in judged.challenger.items() if np.isfinite(v)}


def test_the_holdout_is_arrays_that_come_back_as_they_were(judged: Evaluation, tmp_path: Path) -> None:
    found = read_holdout(judged.mlflow_run_id)
    assert found is not None and found.scores.dtype == np.float32 and found.scores.shape == (judged.test_rows, 2)
    assert set(found.truth) == {0, 1}
    (tmp_path / HOLDOUT).write_bytes(runs.read_files(judged.mlflow_run_id, "evaluation", ".npz")[HOLDOUT])
    with zipfile.ZipFile(tmp_path / HOLDOUT) as archive:
        assert sorted(archive.namelist()) == ["scores.npy", "truth.npy"]
    assert read_holdout("0" * 32) is None


def test_of_many_test_rows_a_seeded_sample_is_kept(tmp_path: Path) -> None:
    config, rows = configured("houses"), rows_of("houses")
    release = released(tmp_path / "r", config, rows.train, "linear_regression")
    many = pd.concat([rows.test] * (MOST // len(rows.test) + 1), ignore_index=True)
    one, two = draw_holdout(release, many), draw_holdout(release, many)
    assert one.scores.shape == one.truth.shape == (MOST,) and one.gap(config, ()) is None
    assert np.array_equal(one.scores, two.scores) and np.array_equal(one.truth, two.truth)
    assert draw_holdout(release, rows.test).truth.tolist() == rows.test["price"].tolist()


def test_a_pickle_in_its_place_is_refused(judged: Evaluation, tmp_path: Path) -> None:
    write_holdout(tmp_path, Holdout(np.array([{"a": 1}], dtype=object), np.zeros(1)))
    run = runs.start_run(MODEL)
    runs.log_files(run, tmp_path, "evaluation")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_holdout(run)


def test_a_look_is_kept_once_in_the_database_and_in_the_run(champion: Champion, ledger_url: str) -> None:
    frame = arrivals()
    moment = pd.Timestamp.now("UTC").floor("s").to_pydatetime()
    tell(ledger_url, serve(ledger_url, champion, frame, moment), frame[TARGET], moment)
    looked = run_checks(champion, watch_of(["performance", "drift"]), ledger_url, run="one")
    ledger = open_ledger()
    assert keep(looked, champion, ledger) == looked.findings == read_findings(ledger, MODEL)
    again = run_checks(champion, watch_of(["performance", "drift"]), ledger_url, run="one")
    assert keep(again, champion, ledger) == looked.findings == read_findings(ledger, MODEL), "a step tried again"
    other = replace(looked, findings=tuple(f.model_copy(update={"run": "two"}) for f in looked.findings))
    assert len(keep(other, champion, ledger)) == 2 and len(read_findings(ledger, MODEL)) == 4, "two monitors at once"
    files = runs.read_files(champion.run_id, folder_of(looked.findings[0]), "")
    assert set(files) == {
        "performance.json",
        "performance_detail.json",
        "drift.json",
        "drift_detail.json",
        "drift.html",
    }
    assert json.loads(files["drift.json"])["check"] == "drift" and b"<html" in files["drift.html"][:500].lower()
    assert Performance.model_validate_json(files["performance_detail.json"]).labels == 700


def test_where_mlflow_has_no_run_the_database_has_the_findings(
    champion: Champion, ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    looked = run_checks(champion, watch_of(["quality"], window="30m"), ledger_url)
    before = len(read_findings(open_ledger(), MODEL))
    keep(looked, replace(champion, run_id=""), open_ledger())
    assert len(read_findings(open_ledger(), MODEL)) == before + 1
    assert "MLflow has no run of v1 any more" in caplog.text
