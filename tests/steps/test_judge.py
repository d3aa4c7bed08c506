import math
from typing import Any

import pytest

from models.errors import ConfigError
from steps.promote import Verdict, judge, require_gates
from tests.steps.arena import against, config_of, evaluation_of, package_of


def _gate(verdict: Verdict, name: str) -> Any:
    return next(gate for gate in verdict.gates if gate.name == name)


def _asking(value: float, of: str, **changes: Any) -> Any:
    return config_of(promotion={"min_improvement": {"value": value, "of": of}}, **changes)


def test_the_first_that_passes_its_gates_is_promoted() -> None:
    verdict = judge(config_of(), evaluation_of(), package_of(1), None)
    assert (verdict.decision, verdict.champion, verdict.former, verdict.rows) == ("promoted", 1, None, 0)
    assert verdict.reason == "v1 is the first champion"
    names = [gate.name for gate in verdict.gates]
    assert names == ["smoke_test", "beats_dummy", "accuracy", "quality_score", "improvement"]
    assert [gate.verdict for gate in verdict.gates] == ["passed"] * 4 + ["skipped"]
    assert _gate(verdict, "accuracy").margin == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "package", "gate", "words"),
    [
        ({"challenger": {"accuracy": 0.79}}, {}, "accuracy", "0.79, at least 0.8 is asked"),
        ({"challenger": {"accuracy": math.nan}}, {}, "accuracy", "could not be computed"),
        ({"challenger": {"f1_macro": 0.9}}, {}, "accuracy", "was not measured"),
        ({"quality_score": 79.0}, {}, "quality_score", "79, at least 80 is asked"),
        ({"dummy": 0.9}, {}, "beats_dummy", "accuracy 0.9, the dummy has 0.9"),
        ({"dummy": 0.95}, {}, "beats_dummy", "the dummy has 0.95"),
        ({"dummy": math.nan}, {}, "beats_dummy", "could not be computed"),
        ({}, {"smoke": "the port never answered"}, "smoke_test", "the port never answered"),
    ],
)
def test_a_failed_gate_rejects(changes: dict[str, Any], package: dict[str, Any], gate: str, words: str) -> None:
    for champion, evaluation in [(None, evaluation_of(**changes)), (1, against(1, 0.5, 0.9, **changes))]:
        verdict = judge(config_of(), evaluation, package_of(2, **package), champion)
        assert (verdict.decision, verdict.champion) == ("rejected", champion)
        assert words in _gate(verdict, gate).reason
        assert f"gate {gate} failed" in verdict.reason
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_warning_does_not_reject() -> None:
    config = config_of(gates={"accuracy": {"min": 0.95, "blocking": False}, "p95_ms": {"max": 1, "blocking": False}})
    verdict = judge(config, evaluation_of(), package_of(1), None)
    assert verdict.decision == "promoted"
    assert (_gate(verdict, "accuracy").verdict, _gate(verdict, "accuracy").blocking) == ("failed", False)
    assert _gate(verdict, "p95_ms").margin == -4


def test_lower_is_better_floors_and_dummy() -> None:
    config = config_of(task="regression", target={"column": "y"}, metric="mae", gates={"mae": {"max": 10}})
    changes: dict[str, Any] = {"metric": "mae", "greater_is_better": False}
    good = evaluation_of(challenger={"mae": 9.0}, dummy=20.0, **changes)
    assert judge(config, good, package_of(1), None).decision == "promoted"
    bad = evaluation_of(challenger={"mae": 9.0}, dummy=8.0, **changes)
    assert _gate(judge(config, bad, package_of(1), None), "beats_dummy").margin == -1


def test_a_margin_over_dummy_and_linear_can_be_asked() -> None:
    config = config_of(gates={"beats_dummy": {"min": 0.6}, "beats_linear": {"min": 0.01}})
    verdict = judge(config, evaluation_of(), package_of(1), None)
    assert verdict.decision == "rejected"
    assert (_gate(verdict, "beats_dummy").threshold, _gate(verdict, "beats_dummy").verdict) == (1.0, "failed")
    assert _gate(verdict, "beats_linear").verdict == "passed"


@pytest.mark.parametrize(
    ("of", "value", "old", "new", "decision"),
    [
        ("metric", 0.02, 0.80, 0.82, "promoted"),  # 0.82 - 0.80 is a hair under 0.02 in floats
        ("metric", 0.02, 0.80, 0.8199, "kept"),
        ("metric", 0.0, 0.90, 0.90, "kept"),
        ("metric", 0.0, 0.90, 0.9001, "promoted"),
        ("metric", 0.02, 0.90, 0.85, "kept"),
        ("error", 0.02, 0.90, 0.902, "promoted"),
        ("error", 0.02, 0.90, 0.9019, "kept"),
        ("error", 0.0, 0.90, 0.90, "kept"),
        ("error", 0.02, 1.0, 1.0, "kept"),
        ("error", 0.0, 1.0, 0.99, "kept"),
    ],
)
def test_improvement_where_more_is_better(of: str, value: float, old: float, new: float, decision: str) -> None:
    verdict = judge(_asking(value, of), against(1, old, new), package_of(2), 1)
    assert verdict.decision == decision
    assert verdict.champion == (2 if decision == "promoted" else 1)
    assert verdict.rows == 90
    assert "90 rows that neither was trained on" in verdict.reason


@pytest.mark.parametrize(
    ("of", "value", "old", "new", "decision"),
    [
        ("metric", 0.5, 10.0, 9.5, "promoted"),
        ("metric", 0.5, 10.0, 9.6, "kept"),
        ("metric", 0.5, 10.0, 10.5, "kept"),
        ("error", 0.02, 10.0, 9.8, "promoted"),
        ("error", 0.02, 10.0, 9.81, "kept"),
        ("error", 0.02, 0.0, 0.0, "kept"),
    ],
)
def test_improvement_where_less_is_better(of: str, value: float, old: float, new: float, decision: str) -> None:
    config = _asking(value, of, task="regression", target={"column": "y"}, metric="mae", gates={})
    evaluation = against(1, old, new, metric="mae", greater_is_better=False, dummy=50.0)
    assert judge(config, evaluation, package_of(2), 1).decision == decision


def test_the_same_release_stays_champion() -> None:
    verdict = judge(config_of(), against(1, 0.9, 0.9), package_of(1), 1)
    assert (verdict.decision, verdict.champion) == ("kept", 1)
    assert verdict.reason == "v1 stays: this Release is the champion (same data, same score)"
    stricter = judge(config_of(gates={"accuracy": {"min": 0.95}}), against(1, 0.9, 0.9), package_of(1), 1)
    assert stricter.decision == "kept"
    assert stricter.reason.endswith("though it fails accuracy now")


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        (evaluation_of(), "v1 is champion now, but there was no champion when it was evaluated"),
        (against(3, 0.8, 0.9), "v1 is champion now, but v3 was champion when it was evaluated"),
        (evaluation_of(champion_version=1, notes=("its Release cannot be read",)), "(its Release cannot be read)"),
        (against(1, 0.8, 0.9, rows=0), "could not be compared with it on rows that neither was trained on"),
        (against(1, math.nan, 0.9), "accuracy could not be computed on the 90 rows compared"),
        (against(1, 0.8, 0.9, champion={"f1_macro": 0.8}), "accuracy could not be computed"),
    ],
)
def test_what_cannot_be_compared_waits_for_a_person(evaluation: Any, words: str) -> None:
    verdict = judge(config_of(), evaluation, package_of(2), 1)
    assert (verdict.decision, verdict.champion) == ("pending", 1)
    assert words in verdict.reason
    assert _gate(verdict, "improvement").verdict == "skipped"


def test_a_gate_that_nothing_measures_is_a_configuration_error() -> None:
    require_gates(config_of())
    with pytest.raises(ConfigError, match=r"nothing measures 'acuracy' \(there is: accuracy"):
        require_gates(config_of(gates={"acuracy": {"min": 0.5}}))
