"""Behavioural checks on real Releases, good ones and ones that learnt something silly."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.config import ModelConfig
from models.errors import ConfigError
from steps import behaviour as module
from steps.behaviour import Behaved, check_behaviour, require_behaviour
from steps.evaluate import evaluate_release
from steps.verdict import judge, require_gates
from tests.steps.arena import evaluation_of, package_of
from tests.steps.learning import configured, rows_of, toy
from tests.steps.test_evaluate import released

COLUMNS: dict[str, Any] = {
    "dose": {"type": "number", "range": [0, 10], "missing": 0.5},
    "colour": {"type": "category", "categories": ["red", "green"]},
    "said": {"type": "text", "missing": 0.5},
    "who": {"type": "text", "personal": True},
}
SECRET = "jane.doe@example.org"


def checked(*checks: dict[str, Any], **keys: Any) -> ModelConfig:
    return toy(COLUMNS, evaluation={"behaviour": list(checks)}, text={"min_rows": 1, "normalise": False}, **keys)


def table(*, silly: bool, rows: int = 400) -> pd.DataFrame:
    """A class that follows the dose; in the silly data it follows the colour, a word and the fall of the dose."""
    rng = np.random.default_rng(2)
    dose = rng.uniform(0, 10, rows).round(3)
    red = rng.random(rows) < 0.5
    ill = (dose < 5) if silly else (dose > 5)
    ill = np.where(rng.random(rows) < 0.3, red, ill) if silly else ill
    words = np.where(ill if silly else rng.random(rows) < 0.5, "run 17 failed", "run 18 passed")
    frame = pd.DataFrame({"dose": dose, "colour": np.where(red, "red", "green"), "said": words})
    frame.loc[::10, "dose"] = np.nan
    frame.loc[::7, "said"] = np.nan
    return frame.astype({"colour": object, "said": object}).assign(
        who=SECRET, y=np.where(ill, "yes", "no").astype(object)
    )


INVARIANT = {"name": "colour_blind", "kind": "invariance", "column": "colour", "values": ["red", "green"]}
NUMBERLESS = {"name": "run_id", "kind": "invariance", "column": "said", "replace": [r"failed|passed", "ended"]}
RISES = {"name": "more_dose", "kind": "direction", "column": "dose", "shift": 2.0, "expect": "rises", "tolerance": 0.0}
OBVIOUS = {
    "name": "obvious",
    "kind": "minimum",
    "rows": [{"dose": 9.5, "colour": "red", "said": "run 17 failed"}, {"dose": 9.9, "colour": "green"}],
    "expect": "yes",
}
CHECKS = ({**INVARIANT, "tolerance": 0.15}, {**NUMBERLESS, "tolerance": 0.15}, RISES, OBVIOUS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Behaved]]:
    """What the checks say of a good and of a silly model."""
    found = {}
    for kind in ("good", "silly"):
        frame = table(silly=kind == "silly")
        release = released(tmp_path_factory.mktemp(kind) / "r", checked(*CHECKS), frame)
        found[kind] = {result.name: result for result in check_behaviour(release, frame)}
    return found


@pytest.mark.parametrize("name", ["colour_blind", "run_id", "more_dose", "obvious"])
def test_a_good_model_behaves_and_a_silly_one_does_not(name: str, results: dict[str, dict[str, Behaved]]) -> None:
    good, silly = results["good"][name], results["silly"][name]
    assert (good.passed, good.failures, good.share) == (True, 0, 1.0)
    assert not silly.passed and silly.failures > 0
    assert silly.share is not None and silly.share < 1.0
    if name != "obvious":
        assert silly.worst is not None and good.worst is not None and silly.worst > good.worst
        assert "the worst answer is off by" in silly.reason
    assert all(SECRET not in one.model_dump_json() for one in (good, silly))


def test_rows_that_cannot_be_changed_do_not_count(results: dict[str, dict[str, Behaved]]) -> None:
    frame = table(silly=False)
    good = results["good"]
    assert good["more_dose"].rows == int((frame["dose"] <= 8).sum())
    assert good["run_id"].rows == int(frame["said"].notna().sum())
    assert good["colour_blind"].rows == len(frame)
    assert good["obvious"].rows == 2


def test_a_check_that_no_row_can_be_tried_on_fails(tmp_path: Path) -> None:
    frame = table(silly=False)
    """Classes that the YAML does not name are known only once the model is trained."""
    untried, unknown_class = {**NUMBERLESS, "replace": ["timestamp", "time"]}, {**INVARIANT, "label": "maybe"}
    config = checked(untried, unknown_class, target={"column": "y", "labels": []})
    none, unknown = check_behaviour(released(tmp_path / "r", config, frame), frame)
    assert (none.passed, none.rows, none.share) == (False, 0, None)
    assert none.reason == "none of 400 test rows has a 'said' that can be changed so"
    assert (unknown.passed, unknown.share) == (False, None)
    assert "the model knows no class 'maybe'" in unknown.reason


def test_a_share_and_a_tolerance_can_be_allowed(tmp_path: Path) -> None:
    frame = table(silly=True)
    strict = {**RISES, "min_share": 1.0}
    lenient = {**RISES, "name": "lenient", "min_share": 0.0}
    wide = {**RISES, "name": "wide", "tolerance": 1.0}
    one, two, three = check_behaviour(released(tmp_path / "r", checked(strict, lenient, wide), frame), frame)
    assert (one.passed, two.passed, three.passed) == (False, True, True)
    assert (two.failures, three.failures) == (one.failures, 0)


def test_a_seeded_sample_is_tried_and_the_rows_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_ROWS", 50)
    frame = table(silly=True)
    before = frame.copy(deep=True)
    release = released(tmp_path / "r", checked(*CHECKS), frame)
    first = check_behaviour(release, frame)
    assert first[0].rows == 50
    assert check_behaviour(release, frame) == first
    pd.testing.assert_frame_equal(frame, before)


def test_a_regression_is_checked_by_its_number(tmp_path: Path) -> None:
    checks = [
        {"name": "larger", "kind": "direction", "column": "size m²", "shift": 10, "expect": "rises"},
        {"name": "smaller", "kind": "direction", "column": "size m²", "shift": 10, "expect": "falls"},
        {"name": "flat", "kind": "minimum", "rows": [{"size m²": 100, "rooms": 3}], "expect": [80_000, 120_000]},
        {"name": "castle", "kind": "minimum", "rows": [{"size m²": 100, "rooms": 3}], "expect": [1e6, 2e6]},
    ]
    config = configured("houses", evaluation={"behaviour": checks})
    rows = rows_of("houses")
    release = released(tmp_path / "r", config, rows.train, "linear_regression")
    assert [one.passed for one in check_behaviour(release, rows.test)] == [True, False, True, False]


def test_each_check_is_a_gate(tmp_path: Path) -> None:
    frame = table(silly=True)
    config = checked({**RISES, "blocking": False}, OBVIOUS)
    release = released(tmp_path / "r", config, frame)
    judged = evaluate_release(release, frame, frame, 100)
    assert [one.name for one in judged.behaviour] == ["more_dose", "obvious"]
    verdict = judge(config, judged, package_of(1, "toy"), None)
    gates = {gate.name: gate for gate in verdict.gates}
    warning, blocking = gates["behaviour:more_dose"], gates["behaviour:obvious"]
    assert (warning.verdict, warning.blocking, warning.threshold) == ("failed", False, 1.0)
    assert warning.value is not None and warning.margin == warning.value - 1.0
    assert (blocking.verdict, blocking.blocking) == ("failed", True)
    assert verdict.decision == "rejected"
    assert "gate behaviour:obvious failed: " in verdict.reason and "behaviour:more_dose failed" not in verdict.reason


def test_a_check_that_could_not_be_tried_blocks() -> None:
    untried = Behaved(
        name="ids",
        kind="invariance",
        rows=0,
        share=None,
        failures=0,
        min_share=1,
        blocking=True,
        passed=False,
        reason="none",
    )
    verdict = judge(checked(), evaluation_of("toy", behaviour=(untried,)), package_of(1, "toy"), None)
    gate = next(gate for gate in verdict.gates if gate.name == "behaviour:ids")
    assert (gate.verdict, gate.value, gate.margin, verdict.decision) == ("failed", None, None, "rejected")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({**INVARIANT, "column": "who"}, "column 'who' is no input of the model"),
        ({**RISES, "column": "colour"}, "shift: 'colour' is a category, no number"),
        ({**NUMBERLESS, "column": "dose"}, "replace: 'dose' is a number, no text"),
        ({**INVARIANT, "column": "dose", "values": [1, "much"]}, "values.1: 'dose' is a number, and this is no number"),
        ({**OBVIOUS, "rows": [{"dose": 1}, {"dose": "much"}]}, "rows.1: 'dose' is a number, and this is no number"),
        ({**OBVIOUS, "rows": [{"who": SECRET}]}, "rows.0: it gives no input of the model (there is: dose, colour"),
        ({**OBVIOUS, "expect": "yess"}, "expect: the target has no class 'yess'; did you mean 'yes'?"),
        ({**OBVIOUS, "expect": [0.0, 1.0]}, "expect: give a class"),
    ],
)
def test_a_check_that_cannot_be_run_is_refused_before_training(check: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_gates(checked(check))
    assert said in str(caught.value)
    assert f"evaluation.behaviour.{check['name']}" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_regressions_check_is_refused_in_the_same_way() -> None:
    for check, said in [
        ({"name": "c", "kind": "minimum", "rows": [{"rooms": 3}], "expect": "flat"}, "a regression answers"),
        ({"name": "c", "kind": "minimum", "rows": [{"rooms": 3}], "expect": [2.0, 1.0]}, "a regression answers"),
        ({"name": "c", "kind": "invariance", "column": "rooms", "shift": 0.5}, "whole numbers, 0.5 is none"),
        ({"name": "c", "kind": "invariance", "column": "rooms", "shift": 1.0, "label": "x"}, "has no classes"),
    ]:
        with pytest.raises(ConfigError, match=said):
            require_behaviour(configured("houses", evaluation={"behaviour": [check]}))


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        checked({**NUMBERLESS, "replace": ["(", ""]})
