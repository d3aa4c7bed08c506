from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.release import Answers
from models.config import ModelConfig, load_model, parse_set
from models.errors import ConfigError
from steps.evaluate import evaluate_release
from steps.metrics import compute_metrics
from steps.slices import Slice, slice_gap, slices, unjudged
from steps.verdict import Gate, judge, require_gates
from tests.steps.arena import evaluation_of, package_of
from tests.steps.learning import configured, rows_of, toy
from tests.steps.test_evaluate import released

COLUMNS: dict[str, Any] = {
    "age": {"type": "number"},
    "sex": {"type": "category"},
    "town": {"type": "category"},
    "seen": {"type": "datetime", "missing": 0.5},
    "who": {"type": "text", "personal": True},
    "note": {"type": "text"},
}


def rows(count: int = 2_000, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.uniform(20, 80, count).round(1)})
    frame["sex"] = rng.choice(np.array(["f", "m"], dtype=object), count)
    frame["town"] = rng.choice(np.array(["a", "b", "c", "rare"], dtype=object), count, p=[0.4, 0.3, 0.29, 0.01])
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, count), unit="D")
    frame["seen"] = pd.Series(days).where(rng.random(count) < 0.8)
    frame["who"] = [f"person {number % 10}" for number in range(count)]
    frame["note"] = "the same"
    frame["y"] = rng.choice(np.array(["no", "yes"], dtype=object), count)
    return frame


def answered(frame: pd.DataFrame, wrong: Any, seed: int = 1) -> Answers:
    """Answers that are wrong with the given probability, row by row."""
    rng = np.random.default_rng(seed)
    right = rng.random(len(frame)) > wrong
    said = np.where(right, frame["y"], np.where(frame["y"] == "yes", "no", "yes")).astype(object)
    sure = rng.uniform(0.55, 0.95, len(frame))
    second = np.where(said == "yes", sure, 1 - sure)
    return Answers(said, np.stack((1 - second, second), axis=1))


def found(config: ModelConfig, frame: pd.DataFrame, answers: Answers) -> tuple[Slice, ...]:
    truth = frame[config.target.column].to_numpy()
    whole = compute_metrics(config, config.target.labels, truth, answers)[config.metric]
    return slices(config, config.target.labels, frame, answers, whole)


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "log_loss", "f1_macro"])
def test_a_planted_slice_of_two_columns_is_found_first(metric: str) -> None:
    frame, config = rows(), toy(COLUMNS, metric=metric)
    planted = (frame["sex"] == "f") & (frame["town"] == "b")
    (worst, *others) = found(config, frame, answered(frame, np.where(planted, 0.55, 0.1)))
    assert (worst.where, worst.columns, worst.found) == ("sex = f and town = b", ("sex", "town"), True)
    assert worst.rows == planted.sum()
    assert worst.gap > worst.sure_gap > 0.1
    assert worst.interval.low <= worst.value <= worst.interval.high
    assert len(others) < 5 and all(one.sure_gap <= worst.sure_gap for one in others)


def test_a_planted_quarter_of_a_number_and_of_dates() -> None:
    frame, config = rows(), toy(COLUMNS)
    edge = frame["age"].quantile(0.75, interpolation="lower")
    (worst, *_) = found(config, frame, answered(frame, np.where(frame["age"] > edge, 0.5, 0.1)))
    assert worst.where == f"age above {edge:g}"
    first = frame["seen"].quantile(0.25, interpolation="lower")
    (worst, *_) = found(config, frame, answered(frame, np.where(frame["seen"] <= first, 0.5, 0.1)))
    assert worst.where == f"seen up to {first.date()}"
    (worst, *_) = found(config, frame, answered(frame, np.where(frame["seen"].isna(), 0.5, 0.1)))
    assert worst.where == "seen missing"


def test_noise_is_never_a_sure_gap_worth_a_warning() -> None:
    """Of 20 sets of answers that are equally good everywhere, none has a slice that is surely 0.05 behind."""
    config = toy(COLUMNS)
    gaps = [slice_gap(found(config, rows(seed=seed), answered(rows(seed=seed), 0.2, seed + 50))) for seed in range(20)]
    assert max(gap or 0.0 for gap in gaps) < 0.05


def test_configured_slices_come_first_in_order_and_have_at_least_50_rows() -> None:
    derived = {"old": {"bin": "age", "edges": [40, 60], "labels": ["young", "middle", "old"], "feature": False}}
    asked = {"slices": {"columns": ["town", "old", "age"], "find": 0}}
    frame = rows()
    config = toy(COLUMNS, derived=derived, evaluation=asked)
    answers = answered(frame, 0.2)
    told = found(config, frame, answers)
    names = [one.where for one in told]
    assert names[:6] == [
        "town = a",
        "town = b",
        "town = c",
        *[f"old = {name}" for name in names[3:6] for name in [name[6:]]],
    ]
    assert set(names[3:6]) == {"old = young", "old = middle", "old = old"}
    assert len(names) == 10 and names[6].startswith("age up to ") and names[9].startswith("age above ")
    assert not any(one.found for one in told)
    town = (frame["town"] == "a").to_numpy()
    right = (frame["y"].to_numpy() == answers.values)[town]
    assert (told[0].rows, told[0].value) == (town.sum(), pytest.approx(right.mean()))
    whole = (frame["y"].to_numpy() == answers.values).mean()
    assert told[0].gap == pytest.approx(whole - right.mean())
    assert told[0].sure_gap == pytest.approx(whole - told[0].interval.high)


def test_personal_columns_and_texts_are_never_looked_at() -> None:
    frame, config = rows(), toy(COLUMNS)
    wrong = np.where((frame["who"] == "person 3"), 0.9, 0.1)
    assert not any("person" in one.where or "note" in one.where for one in found(config, frame, answered(frame, wrong)))
    wine = parse_set(["columns.alcohol.personal=true", "evaluation.slices.columns=[alcohol]"])
    with pytest.raises(ConfigError, match="column 'alcohol' is personal"):
        load_model("wine", [wine])


def test_a_slice_that_does_not_allow_the_metric_is_left_out() -> None:
    frame = rows()
    frame["y"] = np.where(frame["town"] == "b", "yes", frame["y"])
    config = toy(COLUMNS, metric="roc_auc", evaluation={"slices": {"columns": ["town"], "find": 0}})
    assert [one.where for one in found(config, frame, answered(frame, 0.2))] == ["town = a", "town = c"]


@pytest.mark.parametrize("metric", ["mae", "rmse", "r2"])
def test_slices_of_a_regression(metric: str) -> None:
    rng = np.random.default_rng(4)
    frame = rows().assign(y=lambda f: f["age"])
    frame["y"] = np.where(frame["town"] == "c", 50.0, frame["y"])  # r2 within this slice means nothing
    said = frame["y"].to_numpy() + rng.normal(0, np.where(frame["sex"] == "m", 9.0, 3.0))
    config = toy(COLUMNS, task="regression", target={"column": "y", "labels": []}, metric=metric, tuning={"trials": 0})
    told = found(config, frame, Answers(said, None))
    assert told[0].where == "sex = m"
    assert told[0].sure_gap > 0.03
    assert not any(one.where == "town = c" for one in told)
    errors = (said - frame["y"].to_numpy())[(frame["sex"] == "m").to_numpy()]
    expected = {
        "mae": np.abs(errors).mean(),
        "rmse": np.sqrt((errors**2).mean()),
        "r2": 1 - (errors**2).mean() / np.var(frame["y"].to_numpy()),
    }
    assert told[0].value == pytest.approx(expected[metric])


def test_many_rows_are_counted_in_cells() -> None:
    frame, config = rows(60_000), toy(COLUMNS, metric="roc_auc", evaluation={"slices": {"find": 1}})
    planted = (frame["sex"] == "f") & (frame["town"] == "b")
    answers = answered(frame, np.where(planted, 0.4, 0.1))
    (worst,) = found(config, frame, answers)
    assert worst.where == "sex = f and town = b"
    inside = planted.to_numpy()
    exact = compute_metrics(
        config, config.target.labels, frame["y"].to_numpy()[inside],
        Answers(answers.values[inside], answers.probabilities[inside] if answers.probabilities is not None else None),
    )  # fmt: skip
    assert worst.value == pytest.approx(exact["roc_auc"])


def test_no_rows_no_slices() -> None:
    assert slice_gap(()) is None
    frame, config = rows(40), toy(COLUMNS, evaluation={"slices": {"columns": ["sex"]}})
    assert found(config, frame, answered(frame, 0.2)) == ()


LOOKED = {"slices": {"columns": ["sex", "town", "old", "age"], "find": 2}}
OLD = {"old": {"bin": "age", "edges": [40], "labels": ["young", "aged"], "feature": False}}
DECLARED = {**COLUMNS, "sex": {"type": "category", "categories": ["f", "m", "x"]}, "town:x": {"type": "boolean"}}


def floored(gates: dict[str, Any], **keys: Any) -> ModelConfig:
    return toy(DECLARED, derived=OLD, gates=gates, evaluation={**LOOKED, **keys.pop("evaluation", {})}, **keys)


def judged(config: ModelConfig, frame: pd.DataFrame, answers: Answers) -> dict[str, Gate]:
    """What the slice floors say of answers, by name, after the way of a run."""
    require_gates(config)
    parts = found(config, frame, answers)
    told = evaluation_of("toy", metric=config.metric, slices=parts, unjudged=unjudged(config, frame, parts))
    verdict = judge(config, told, package_of(1, "toy"), None)
    failed = any(gate.verdict == "failed" and gate.blocking for gate in verdict.gates)
    assert verdict.decision == ("rejected" if failed else "promoted")
    return {gate.name: gate for gate in verdict.gates if gate.name.startswith("slice")}


def test_a_floor_on_a_value_a_column_and_every_slice() -> None:
    frame = rows()
    planted = (frame["sex"] == "f") & (frame["town"] == "b")
    answers = answered(frame, np.where(planted, 0.55, 0.1))
    names = ("slice:sex:m", "slice:sex:f", "slice:sex", "slice:old:aged", "slice")
    gates = judged(floored({name: {"min": 0.8, "blocking": False} for name in names}), frame, answers)
    assert list(gates) == list(names)
    assert [gate.verdict for gate in gates.values()] == ["passed", "failed", "failed", "passed", "failed"]
    right = (frame["y"].to_numpy() == answers.values).astype(float)
    men, women, both = (right[rows].mean() for rows in (frame["sex"] == "m", frame["sex"] == "f", planted))
    assert [gates[name].value for name in names[:3]] == [pytest.approx(value) for value in (men, women, women)]
    assert gates["slice"].value == pytest.approx(both), "the worst slice was found, and not asked for"
    assert (gates["slice:sex"].threshold, gates["slice:sex"].margin) == (0.8, pytest.approx(women - 0.8))
    assert gates["slice:sex"].reason.startswith(f"sex = f: accuracy {women:.4g} (")
    for said in (f"on {(frame['sex'] == 'f').sum()} test rows, at least 0.8 is asked", "the worst of 2 slices"):
        assert said in gates["slice:sex"].reason
    assert "sex = f and town = b" in gates["slice"].reason


@pytest.mark.parametrize(("blocking", "verdict"), [(True, "rejected"), (False, "promoted")])
def test_a_floor_blocks_or_warns_as_the_yaml_says(blocking: bool, verdict: str) -> None:
    frame = rows()
    config = floored({"slice:sex": {"min": 0.95, "blocking": blocking}})
    parts = found(config, frame, answered(frame, 0.2))
    told = judge(config, evaluation_of("toy", slices=parts), package_of(1, "toy"), None)
    assert told.decision == verdict


def test_a_metric_of_which_less_is_better_has_a_ceiling() -> None:
    frame = rows()
    answers = answered(frame, np.where(frame["town"] == "b", 0.5, 0.1))
    config = floored({"slice:town": {"max": 0.5, "blocking": False}}, metric="log_loss")
    gate = judged(config, frame, answers)["slice:town"]
    assert gate.verdict == "failed" and gate.margin is not None and gate.margin < 0
    assert gate.reason.startswith("town = b: log_loss") and "at most 0.5 is asked" in gate.reason
    with pytest.raises(ConfigError, match=r"gates.slice:town: a smaller log_loss is better, give max"):
        require_gates(floored({"slice:town": {"min": 0.5}}, metric="log_loss"))
    with pytest.raises(ConfigError, match=r"gates.slice: a larger accuracy is better, give min"):
        require_gates(floored({"slice": {"max": 0.5}}))


def test_a_floor_whose_slice_cannot_be_judged_fails_and_says_why() -> None:
    """A promise about rows that nobody looked at was not kept; other slices of the column are judged all the same."""
    frame = rows()
    few = int((frame["town"] == "rare").sum())
    assert 0 < few < 50
    names = ("slice:town:rare", "slice:town:nowhere", "slice:sex:x", "slice:sex:missing", "slice:town")
    gates = judged(floored({name: {"min": 0.5} for name in names}), frame, answered(frame, 0.2))
    assert [gate.verdict for gate in gates.values()] == ["failed"] * 4 + ["passed"]
    small = f"town = rare has {few} test rows, at least 50 are asked"
    assert gates["slice:town:rare"].reason == f"no slice was judged: {small}"
    assert gates["slice:town:nowhere"].reason == "there is no slice town = nowhere among the test rows"
    assert gates["slice:town"].reason.endswith(f"; the worst of 3 slices; not judged: {small}")
    frame["y"] = np.where(frame["town"] == "b", "yes", frame["y"])
    gates = judged(floored({"slice:town:b": {"min": 0.5}}, metric="roc_auc"), frame, answered(frame, 0.2))
    one_class = f"roc_auc could not be computed on the {(frame['town'] == 'b').sum()} test rows of town = b"
    assert (gates["slice:town:b"].verdict, gates["slice:town:b"].value) == ("failed", None)
    assert gates["slice:town:b"].reason == f"no slice was judged: {one_class}"


def test_the_slice_without_a_value_has_a_name() -> None:
    frame = rows()
    config = floored({"slice:seen:missing": {"min": 0.9}}, evaluation={"slices": {"columns": ["seen"], "find": 0}})
    gate = judged(config, frame, answered(frame, np.where(frame["seen"].isna(), 0.5, 0.0)))["slice:seen:missing"]
    assert gate.verdict == "failed" and gate.reason.startswith("seen missing: accuracy 0.")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("slice:sec", r"columns has no such column; did you mean 'sex'\? \(there is: sex, town, old, age\)"),
        ("slice:note:a", "columns has no such column"),
        ("slice:", "columns has no such column"),
        ("slice:sex:w", r"column 'sex' has no such value \(there is: f, m, x, missing\)"),
        ("slice:old:age", r"no such value; did you mean 'aged'\? \(there is: young, aged, missing\)"),
        ("slice:age:40", r"the slices of 'age' follow from the data.*slice:age"),
        ("slices", r"nothing measures 'slices' \(there is: .*slice_gap, slice,"),
    ],
)
def test_a_floor_on_no_slice_is_refused_before_training(gate: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_gates(floored({gate: {"min": 0.5}}))


def test_a_column_whose_name_holds_a_colon_is_itself() -> None:
    keys = {"evaluation": {"slices": {"columns": ["town", "town:x"]}}}
    require_gates(floored({"slice:town:x": {"min": 0.5}, "slice:town:x:1": {"min": 0.5}}, **keys))
    with pytest.raises(ConfigError, match=r"column 'town:x' has no such value \(there is: 0, 1, missing\)"):
        require_gates(floored({"slice:town:x:y": {"min": 0.5}}, **keys))


def test_the_shipped_floor_holds_for_the_shipped_model(tmp_path: Path) -> None:
    data, config = rows_of("heart_disease"), configured("heart_disease")
    require_gates(config)
    evaluation = evaluate_release(released(tmp_path / "r", config, data.train), data.train, data.test, 100)
    verdict = judge(config, evaluation, package_of(1, "heart_disease"), None)
    (gate,) = [gate for gate in verdict.gates if gate.name.startswith("slice:")]
    assert (gate.name, gate.threshold, gate.blocking, gate.verdict) == ("slice:sex", 0.7, False, "passed")
    assert gate.value == min(one.value for one in evaluation.slices if one.columns == ("sex",) and not one.found)
    assert evaluation.unjudged == ()
