import math
from typing import Any

import pytest

from models.config import Layer, read_yaml, resolve
from models.errors import ConfigError
from steps.promote import Verdict, judge, require_gates
from steps.verdict import SHIPPED
from tests.models.test_config import MODELS
from tests.steps.arena import against, config_of, evaluation_of, package_of, paired_of


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


@pytest.mark.parametrize(
    ("of", "gain", "low", "words"),
    [
        ("metric", 0.05, -0.001, "the difference is at least -0.0010 with 97.5 % confidence, so it may be noise"),
        ("metric", 0.05, 0.0, "so it may be noise (McNemar's p 0.14)"),
        ("error", 0.05, -0.001, "+50.0% of v1's error, at least +2.0% is asked; the difference is at least -0.0010"),
        ("metric", 0.015, 0.01, "at least +0.0200 is asked; the difference is at least +0.0100 with 97.5 %"),
        ("metric", -0.05, -0.06, "at least +0.0200 is asked"),
    ],
)
def test_noise_and_too_little_keep_the_champion(of: str, gain: float, low: float, words: str) -> None:
    evaluation = against(1, 0.9, 0.9 + gain, paired=paired_of(gain, low, p=0.14))
    verdict = judge(_asking(0.02, of), evaluation, package_of(2), 1)
    gate = _gate(verdict, "improvement")
    assert (verdict.decision, verdict.champion, gate.verdict) == ("kept", 1, "failed")
    assert words in verdict.reason and words in gate.reason
    assert (gate.value, gate.threshold) == (pytest.approx(gain if of == "metric" else gain / 0.1), 0.02)
    assert gate.margin == pytest.approx(gate.value - 0.02)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_a_regression_has_no_mcnemar() -> None:
    config = _asking(0.5, "metric", task="regression", target={"column": "y"}, metric="mae", gates={})
    changes: dict[str, Any] = {"metric": "mae", "greater_is_better": False, "dummy": 50.0}
    verdict = judge(config, against(1, 10.0, 9.0, paired=paired_of(1.0, 0.2, "mae", None), **changes), package_of(2), 1)
    assert verdict.decision == "promoted"
    assert verdict.reason.endswith("the difference is at least +0.2000 with 97.5 % confidence")


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
        (against(1, 0.8, 0.9, paired=None), "there is no interval for the difference on the 90 rows compared"),
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


def test_a_gate_on_a_class_and_on_slices() -> None:
    low = {"label": "b", "rows": 40, "figures": {"recall": 0.6}, "intervals": {}}
    slices = [
        {"where": f"x = {gap}", "columns": ["x"], "rows": 60, "value": 0.5, "interval": {"low": 0.4, "high": 0.6},
         "gap": 0.4, "sure_gap": gap, "found": True}
        for gap in (-0.1, 0.3)
    ]  # fmt: skip
    config = config_of(gates={"recall:b": {"min": 0.7}, "slice_gap": {"max": 0.15, "blocking": False}})
    verdict = judge(config, evaluation_of(classes=(low,), slices=tuple(slices)), package_of(1), None)
    assert (verdict.decision, _gate(verdict, "recall:b").verdict) == ("rejected", "failed")
    gate = _gate(verdict, "slice_gap")
    assert (gate.value, gate.verdict, gate.blocking) == (0.3, "failed", False)
    assert gate.margin == pytest.approx(-0.15)
    none = judge(config, evaluation_of(), package_of(1), None)
    assert (_gate(none, "slice_gap").verdict, _gate(none, "slice_gap").threshold) == ("skipped", 0.15)
    assert "no slice that is large enough" in _gate(none, "slice_gap").reason
    ahead = judge(config, evaluation_of(slices=tuple(slices[:1])), package_of(1), None)
    assert (_gate(ahead, "slice_gap").value, _gate(ahead, "slice_gap").verdict) == (0.0, "passed")
    require_gates(config)
    for name in ("recall:c", "speed:b", "recall:"):
        with pytest.raises(ConfigError, match=f"nothing measures '{name}'"):
            require_gates(config_of(gates={name: {"min": 0.5}}))


def test_a_shipped_gate_that_the_task_has_no_figure_for_is_skipped_one_of_the_user_is_refused() -> None:
    base = Layer(SHIPPED, read_yaml(MODELS / "base.yaml"))
    own = {
        "name": "houses",
        "task": "regression",
        "metric": "mae",
        "target": {"column": "y"},
        "sources": [{"name": "own", "kind": "sklearn", "dataset": "diabetes"}],
        "columns": {"x": {"type": "number"}},
    }
    shipped = resolve([base, Layer("models/houses.yaml", own)])
    require_gates(shipped.config, shipped.origins)
    assert {"ece", "slice_gap", "p95_ms", "size_mb", "quality_score"} <= set(shipped.config.gates)
    assert all(not shipped.config.gates[name].blocking for name in ("ece", "slice_gap", "p95_ms", "size_mb"))
    measured = evaluation_of(challenger={"mae": 1.0}, metric="mae", greater_is_better=False, dummy=2.0)
    verdict = judge(shipped.config, measured, package_of(1), None)
    gate = _gate(verdict, "ece")
    assert (gate.verdict, gate.reason, gate.threshold) == ("skipped", "a regression has no ece", 0.1)
    assert verdict.decision == "promoted"
    for origin in ("models/houses.yaml", "--set"):
        asked = resolve([base, Layer("models/houses.yaml", own), Layer(origin, {"gates": {"ece": {"max": 0.05}}})])
        with pytest.raises(ConfigError, match="nothing measures 'ece'"):
            require_gates(asked.config, asked.origins)
