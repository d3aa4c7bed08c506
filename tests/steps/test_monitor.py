"""The checks of monitoring on real windows of a real prediction log."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import ConfigError, WorkError
from models.monitoring import Monitoring
from stacks.findings import Finding, read_findings
from stacks.ledger import Ledger
from steps import monitor as module
from steps.champion import Champion, champion_of
from steps.monitor import run_checks
from steps.watch import CHECKS, watch_of
from tests.steps.served import answers_of, batch_of, log_batches
from tests.steps.watching import DAY, MODEL, NOW, TARGET, arrivals, found, look, serve, tell, trained


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Champion:
    return trained(tmp_path_factory.mktemp("champion") / "release", gates={"tpr_gap": {"max": 0.6, "blocking": True}})


@pytest.fixture
def log(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


def watched(champion: Champion, **monitoring: Any) -> Champion:
    """The same champion with other limits."""
    changed = Monitoring.model_validate({**champion.config.monitoring.model_dump(), **monitoring})
    return replace(champion, config=champion.config.model_copy(update={"monitoring": changed}))


def test_a_sound_week_raises_nothing(url: str, champion: Champion) -> None:
    frame = arrivals()
    tell(url, serve(url, champion, frame), frame[TARGET])
    looked = look(url, champion, *CHECKS)
    assert {f.check: f.state for f in looked.findings} == dict.fromkeys(CHECKS, "held"), looked.findings
    for finding in looked.findings:
        assert (finding.model, finding.version, finding.since, finding.until) == (MODEL, 1, NOW - 7 * DAY, NOW)
        assert finding.named == () and finding.said and all(map(math.isfinite, finding.figures.values()))
        assert Finding.model_validate_json(finding.model_dump_json()) == finding
    assert set(looked.details) == set(CHECKS) and "age" in looked.page


def test_performance_tells_figures_labels_estimate_and_holdout(log: str, champion: Champion) -> None:
    frame = arrivals()
    ids = serve(log, champion, frame)
    tell(log, ids[::2], frame[TARGET][::2])
    finding = found(log, champion, "performance")
    figures = finding.figures
    assert (figures["labels"], figures["answers"], figures["coverage"]) == (350, 700, 0.5)
    assert figures["roc_auc_low"] < figures["roc_auc"] < figures["roc_auc_high"]
    assert figures["holdout"] == pytest.approx(champion.metrics["roc_auc"])
    assert figures["limit"] == pytest.approx(0.95 * figures["holdout"])
    assert figures["estimated_roc_auc"] == pytest.approx(figures["roc_auc"], abs=0.06)
    assert figures["concept_drifted"] == 0 and figures["concept_gap_low"] < figures["concept_gap_high"]
    assert {"accuracy", "brier", "estimate_error"} <= set(figures)
    assert finding.said.startswith("roc_auc 0.") and "on 350 labels" in finding.said


def test_a_degraded_champion_is_found(log: str, champion: Champion) -> None:
    frame = arrivals()
    turned = np.where(np.random.default_rng(0).random(len(frame)) < 0.4, "healthy", frame[TARGET])
    tell(log, serve(log, champion, frame), turned)
    finding = found(log, champion, "performance")
    assert (finding.state, finding.named) == ("found", ("roc_auc", "concept drift"))
    assert finding.figures["roc_auc_high"] < finding.figures["limit"]
    assert finding.figures["target_drifted"] == 1 and "the target drifted" in finding.said


def test_few_labels_are_unjudged_and_the_estimate_says_that_it_is_one(log: str, champion: Champion) -> None:
    frame = arrivals()
    tell(log, serve(log, champion, frame)[:60], frame[TARGET][:60])
    finding = found(log, champion, "performance")
    assert finding.state == "unjudged"
    assert "60 of 700 answers have an outcome, 100 are needed; estimated roc_auc" in finding.said
    assert "no label stands behind" in finding.said and "estimated_roc_auc" in finding.figures
    assert "drift of the target is not judged: too small: 60 rows, 500 are needed" in finding.said
    assert found(log, champion, "fairness").said.startswith("60 of 700 answers have an outcome, 100 are needed")


def test_outcomes_that_are_odd_are_counted_and_change_nothing(url: str, champion: Champion) -> None:
    """Unknown ids are refused, the same twice is one, another is a contradiction, one of the future is not known."""
    frame = arrivals()
    ids, truth = serve(url, champion, frame), frame[TARGET].to_numpy()
    tell(url, ids[:400], truth[:400])
    before = found(url, champion, "performance")
    other = np.where(truth[:30] == "healthy", "disease", "healthy")
    assert tell(url, ids[:400], truth[:400]).repeated == 400
    assert tell(url, ids[:30], other).contradicted == 30
    assert tell(url, ["0" * 32 + "-1"], ["healthy"]).unknown == 1
    tell(url, ids[400:500], truth[400:500], told=NOW + DAY)
    tell(url, ids[500:600], truth[500:600], at=NOW + DAY)
    after = found(url, champion, "performance")
    odd = {"contradicted": 30.0, "later_labels": 200.0}
    assert after.figures == {**before.figures, **odd} and after.state == before.state == "held"
    assert "30 labels were told in two ways, the first counts" in after.said


def test_only_answers_of_the_champion_are_its_performance(log: str, champion: Champion) -> None:
    frame = arrivals(1_400)
    tell(log, serve(log, champion, frame[:600], version=7), frame[TARGET][:600])
    every = {f.check: f for f in look(log, champion, *CHECKS).findings}
    for check in ("performance", "prediction_drift", "fairness"):
        assert every[check].state == "unjudged"
        assert every[check].said == "v1 answered nothing; 600 rows were answered by other versions"
    assert (every["quality"].state, every["drift"].state) == ("held", "held"), "rows come whoever answers them"
    tell(log, serve(log, champion, frame[600:]), frame[TARGET][600:])
    assert found(log, champion, "performance").figures["answers"] == 800


def test_never_served_and_an_empty_window_are_unjudged(log: str, champion: Champion) -> None:
    for finding in look(log, champion, *CHECKS).findings:
        assert (finding.state, finding.said, finding.figures["rows"]) == ("unjudged", "nothing was answered", 0)
    frame = arrivals()
    tell(log, serve(log, champion, frame, NOW - 20 * DAY), frame[TARGET])
    for finding in look(log, champion, *CHECKS).findings:
        assert finding.state == "unjudged"
        assert finding.said == "nothing was answered; the newest answer is of 2026-10-31 12:00 UTC"
    assert found(log, champion, "drift", window="30d").state == "held"


def test_a_clock_that_was_set_back_is_told(log: str, champion: Champion) -> None:
    serve(log, champion, arrivals(600), datetime.now(UTC) + DAY)
    finding = found(log, champion, "drift")
    assert finding.state == "unjudged" and finding.figures["later"] == 600
    assert "600 answers are dated in the future; was a clock set back?" in finding.said
    serve(log, champion, arrivals(600))
    for check in ("drift", "quality"):
        finding = found(log, champion, check)
        assert (finding.state, finding.figures["later"], finding.figures["rows"]) == ("held", 600, 600)
        assert "600 answers are dated in the future" in finding.said


def test_drift_names_columns_that_moved_and_that_vanished(log: str, champion: Champion) -> None:
    frame = arrivals()
    moved = frame.assign(chol=frame["chol"] + 80, cp=frame["cp"].where(frame.index % 5 > 0, "9"))
    serve(log, champion, moved.drop(columns="thalach"))
    finding = found(log, champion, "drift")
    assert finding.state == "found" and set(finding.named) == {"chol", "thalach", "cp"}
    assert finding.columns["chol"] > 0.1 > finding.columns["trestbps"]
    assert finding.columns["thalach"] == pytest.approx(0.83, abs=0.15), "as if it were missing everywhere"
    assert "thalach (vanished)" in finding.said and "new categories: cp (1 in 20.0% of its values)" in finding.said
    assert "the data set as a whole did not" in finding.said and finding.figures["drifted"] == 0
    weighted = replace(champion, weights={"chol": 0.9, "age": 0.1})
    heavy = found(log, weighted, "drift")
    assert (heavy.figures["drifted_share"], heavy.figures["drifted"]) == (0.9, 1)
    assert "the data set as a whole drifted" in heavy.said


def test_a_small_window_is_widened_or_not_judged(log: str, champion: Champion) -> None:
    serve(log, champion, arrivals(450), NOW - 10 * DAY)
    serve(log, champion, arrivals(30, seed=2))
    finding = found(log, champion, "drift")
    assert finding.state == "unjudged" and finding.said.startswith("too small: 480 rows, 500 are needed")
    serve(log, champion, arrivals(450, seed=3), NOW - 11 * DAY)
    finding = found(log, champion, "drift")
    assert finding.state == "held" and "470 of 500 rows are older: the window was widened" in finding.said


def test_quality_finds_a_low_score_and_names_what_failed(log: str, champion: Champion) -> None:
    frame = arrivals()
    hollow = frame.assign(**dict.fromkeys(("chol", "trestbps", "oldpeak", "thalach", "age"), np.nan))
    serve(log, champion, hollow.assign(cp="9", exang="7"))
    finding = found(log, watched(champion, quality={"min_score": 90}), "quality")
    assert finding.state == "found" and finding.named[0] == "score"
    assert finding.figures["score"] < 90 and finding.columns["chol"] == 0 and finding.columns["sex"] == 1
    assert finding.figures["completeness"] < 0.7 and "quality score" in finding.said


def test_volume_is_trouble_once_three_windows_before_had_any(log: str, champion: Champion) -> None:
    schema, shadowed = champion.release.schema, arrivals(100)
    share = np.full((100, 2), 0.5)
    for ago in (1, 2):
        at = NOW - ago * DAY - DAY / 2
        serve(log, champion, arrivals(300), at)
        log_batches(log, [batch_of(schema, shadowed, answers_of(schema, share), at, variant="shadow")])
    serve(log, champion, arrivals(20))
    before = found(log, champion, "quality", window="1d")
    assert before.state == "held" and "volume_ratio" not in before.figures
    serve(log, champion, arrivals(300), NOW - 4 * DAY - DAY / 2)
    finding = found(log, champion, "quality", window="1d")
    assert (finding.state, finding.named) == ("found", ("volume",))
    assert finding.figures["usual_volume"] == 300 and finding.figures["volume"] == 20, "a shadow answers nobody"
    assert finding.said.startswith("20 rows, 300 are usual (0.07 times; 0.2 to 5 is asked)")
    empty = found(log, champion, "quality", window="1d", at=NOW - 3 * DAY)
    assert empty.state == "unjudged", "one window before had any"
    assert found(log, watched(champion, quality={"volume": None}), "quality", window="1d").state == "held"


def test_silence_is_trouble_though_nothing_was_answered(log: str, champion: Champion) -> None:
    serve(log, champion, arrivals(600), NOW - 2 * DAY)
    listening = watched(champion, quality={"silence": "6h"})
    finding = found(log, listening, "quality", window="1d")
    assert (finding.state, finding.named) == ("found", ("silence",))
    assert finding.said.startswith("no answer for 48.0 hours, 6h is allowed")
    assert found(log, champion, "quality", window="1d").state == "unjudged"


def test_answers_that_moved_are_prediction_drift(log: str, champion: Champion) -> None:
    schema, frame = champion.release.schema, arrivals()
    share = np.random.default_rng(0).uniform(0.9, 1.0, len(frame))
    log_batches(log, [batch_of(schema, frame, answers_of(schema, np.column_stack([1 - share, share])), NOW - DAY)])
    finding = found(log, champion, "prediction_drift")
    assert (finding.state, set(finding.named)) == ("found", {"class", "probability of disease"})
    old = found(log, replace(champion, holdout=None), "prediction_drift")
    assert old.state == "unjudged" and "were not kept: a champion trained from now on has them" in old.said


def test_fairness_is_judged_by_the_models_own_gates(log: str, champion: Champion) -> None:
    schema, frame = champion.release.schema, arrivals(1_200)
    ill, woman = frame[TARGET] == "disease", frame["sex"] == "0"
    share = np.where(ill & woman, 0.1, np.where(ill, 0.9, 0.2))
    batch = batch_of(schema, frame, answers_of(schema, np.column_stack([1 - share, share])), NOW - DAY)
    log_batches(log, [batch])
    tell(log, [f"{batch.id}-{row}" for row in range(len(frame))], frame[TARGET])
    finding = found(log, champion, "fairness")
    assert (finding.state, finding.named) == ("found", ("tpr_gap",))
    assert finding.figures["tpr_gap"] > 0.8 and finding.columns["sex"] > 0.8
    assert "tpr_gap failed (blocking): true positive rate of 'disease' by sex" in finding.said
    gates = {name: gate for name, gate in champion.config.gates.items() if name != "tpr_gap"}
    free = replace(champion, config=champion.config.model_copy(update={"gates": gates}))
    assert found(log, free, "fairness").state == "unjudged"


def test_a_model_without_champion_says_what_to_do(url: str, champion: Champion) -> None:
    with pytest.raises(WorkError, match="'heart_disease' has no champion to watch; train one: gauntlet run heart_dis"):
        champion_of(champion.config, Ledger(url))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"checks": ["dirft"]}, "there is no check 'dirft'; did you mean 'drift'"),
        ({"window": "7 days"}, "write it like 7d, 12h or 30m"),
        ({"window": "400d"}, "366d at most"),
        ({"window": "0d"}, "is no window"),
        ({"at": "yesterday"}, "is no time"),
        ({"at": (datetime.now(UTC) + timedelta(days=2)).isoformat()}, "lies ahead"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        watch_of(**asked)
    assert said in str(refused.value)


def test_checks_are_asked_in_their_order_and_all_when_none_is_named() -> None:
    assert watch_of().checks == CHECKS == watch_of(checks=CHECKS[::-1]).checks
    assert watch_of(checks=["drift", "performance", "drift"]).checks == ("performance", "drift")
    assert watch_of(at="2026-11-20T18:30+02:00").at == datetime(2026, 11, 20, 16, 30, tzinfo=UTC)


def test_a_check_that_fails_is_unjudged_and_the_others_are_kept(
    log: str, champion: Champion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_scene: Any) -> Any:
        raise KeyError("a value of a row")

    def refused(*_: Any) -> Any:
        raise RuntimeError("a value of a row")

    serve(log, champion, arrivals())
    monkeypatch.setattr(module, "CHECK", {**module.CHECK, "quality": broken})
    monkeypatch.setattr(module, "drift_page", refused)
    looked = look(log, champion, "quality", "drift")
    quality, drift = looked.findings
    assert (quality.state, quality.said) == ("unjudged", "the check failed: KeyError")
    assert (drift.state, looked.page) == ("held", "")


def test_findings_are_in_the_database_when_mlflow_refuses(
    log: str, champion: Champion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise WorkError("MLflow is not there")

    monkeypatch.setattr(module.runs, "log_files", refused)
    watched = replace(champion, run_id="r")
    looked = run_checks(watched, watch_of(["drift"], at=NOW.isoformat()), log, run="this")
    for _ in range(2):
        with pytest.raises(WorkError):
            module.keep(looked, watched, Ledger(log))
    assert read_findings(Ledger(log), MODEL) == looked.findings, "once, however often it is tried"


def test_each_look_has_a_folder_of_its_own(log: str, champion: Champion) -> None:
    looks = [look(log, champion, "quality").findings[0] for _ in range(2)]
    first, second = map(module.folder_of, looks)
    assert first != second and first.startswith(f"monitoring/{NOW.date()}/")


def test_a_widened_window_says_from_when_its_rows_are(log: str, champion: Champion) -> None:
    serve(log, champion, arrivals(400), NOW - 10 * DAY)
    serve(log, champion, arrivals(400))
    finding = found(log, champion, "drift")
    assert (finding.since, finding.begin) == (NOW - 7 * DAY, NOW - 10 * DAY)


def test_a_promotion_that_adds_an_input_is_no_drift(log: str, champion: Champion) -> None:
    """v1 answered until now and did not read `chol`; v2 does, and has answered a little."""
    frame = arrivals(1_300)
    serve(log, champion, frame[:1_200].drop(columns="chol"), NOW - DAY / 2)
    second = replace(champion, version=2)
    for _ in range(2):
        findings = {f.check: f for f in look(log, second, "quality", "drift").findings}
        assert {f.state for f in findings.values()} == {"held"}, findings
        assert "of versions that do not read chol" in findings["drift"].said
        assert "chol" not in findings["drift"].columns and findings["quality"].columns["chol"] > 0.7
        serve(log, second, frame[1_200:], NOW - DAY / 4, version=2)
    assert found(log, champion, "drift").named == ("chol",), "v1 ought to have had it"
