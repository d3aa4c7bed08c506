"""Validation: what each check sees, how much it matters, and that no value of a row is ever told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.config import ModelConfig, load_model
from models.errors import LIMIT, ConfigError, DataError
from steps.drift import drift_score
from steps.ingest import ingest_frame
from steps.leak import told_alone
from steps.quality import KINDS, Check, QualityReport
from steps.validate import summarise, validate_frame
from tests.steps.tables import SECRETS, make_config, make_table, write

PERSON, NAME, _ = SECRETS


def _frame(tmp_path: Path, config: ModelConfig | None = None, rows: int = 300, **columns: Any) -> pd.DataFrame:
    path = write(tmp_path, make_table(rows).assign(**columns))
    return ingest_frame((config or make_config()).model_copy(update={"sources": make_config(path).sources})).frame


def _failed(report: QualityReport) -> set[str]:
    return {check.key for check in report.failed()}


def _stopped(config: ModelConfig, frame: pd.DataFrame, *said: str) -> None:
    with pytest.raises(DataError) as caught:
        validate_frame(config, frame)
    text = str(caught.value)
    assert len(text) <= LIMIT
    for part in (*said, "models/tiny.yaml"):
        assert part in text, text
    for secret in SECRETS:
        assert secret not in text


@pytest.mark.parametrize("name", ["wine", "heart_disease"])
def test_the_shipped_models_pass_every_check(name: str) -> None:
    config = load_model(name).config
    report = validate_frame(config, ingest_frame(config).frame)
    assert report.score == 100 and not report.failed()
    assert {check.column for check in report.checks} >= {*config.columns, config.target.column, None}


def test_the_real_heart_disease_rows_pass(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = load_model("heart_disease").config
    made, real = ingest_frame(config).frame, ingest_frame(config, "real").frame
    report = validate_frame(config, real, made)
    assert not report.failed("critical") and report.score > 95
    assert sum(check.name == "drift" for check in report.checks) == 15


def test_every_kind_of_check_is_in_the_report_of_a_plain_frame(tmp_path: Path) -> None:
    frame = _frame(tmp_path, rows=600)
    report = validate_frame(make_config(), frame, frame)
    assert {check.name for check in report.checks} == set(KINDS)
    assert report.score == 100 and report.rows == 600
    assert QualityReport.model_validate_json(report.model_dump_json()) == report


CRITICAL: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "ten rows": ({}, {"rows": 10}, ("rows: 10, expected at least 50",)),
    "missing": (
        {},
        {"size": [np.nan] * 90 + [1.5] * 210},
        ("missing:size: 90 of 300 missing, expected at most 20.0%",),
    ),
    "all missing": ({}, {"size": np.nan}, ("empty:size: 300 of 300 missing", "missing:size")),
    "range": ({}, {"size": [1e6] * 3 + [50.0] * 297}, ("range:size: 3 of 300 values outside, expected 0 to 100",)),
    "one class": ({}, {"y": "yes"}, ("classes:y: 1, expected at least 2",)),
    "unseen category": (
        {"colour": {"type": "category", "categories": ["red", "green", "blue"], "on_unseen": "reject"}},
        {"colour": [NAME] * 2 + ["red", "blue"] * 149},
        ("category:colour: 2 of 300 values not among them, expected 3 categories",),
    ),
}


@pytest.mark.parametrize("case", CRITICAL)
def test_a_critical_failure_stops_and_names_it_without_values(case: str, tmp_path: Path) -> None:
    columns, changes, said = CRITICAL[case]
    declared = make_config().model_dump(mode="json")["columns"]
    config = make_config(columns={**declared, **columns})
    rows = changes.pop("rows", 300) if "rows" in changes else 300
    _stopped(config, _frame(tmp_path, config, rows, **changes), *said)


def test_a_column_that_is_not_there_or_of_another_type_stops(tmp_path: Path) -> None:
    frame = _frame(tmp_path)
    _stopped(make_config(), frame.assign(size=frame["size"].astype(str)), "type:size: category, expected number")
    with pytest.raises(DataError, match="does not have: size"):
        validate_frame(make_config(), frame.drop(columns="size"))
    with pytest.raises(DataError, match="schema: 1 missing"):
        validate_frame(make_config(), frame.drop(columns="y"))


WARNINGS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "unseen category": ({"colour": ["pink", *["red", "blue"] * 149, "red"]}, {"category:colour"}),
    "constant": ({"steps": 7}, {"constant:steps"}),
    "outliers": ({"steps": [1_000_000] * 30 + list(range(270))}, {"outliers:steps"}),
    "rare class": ({"y": ["yes"] * 2 + ["no"] * 298}, {"balance:y"}),
    "leak": ({"steps": (make_table(300)["y"] == "yes").astype(int)}, {"leak:steps"}),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_a_warning_lowers_the_score_and_goes_on(case: str, tmp_path: Path) -> None:
    changes, wanted = WARNINGS[case]
    report = validate_frame(make_config(), _frame(tmp_path, **changes))
    assert _failed(report) == wanted
    total = sum(3 if check.severity == "critical" else 1 for check in report.checks)
    assert report.score == round(100 * (total - len(wanted)) / total, 2)


def test_duplicates_are_counted_and_the_first_of_each_is_none(tmp_path: Path) -> None:
    frame = _frame(tmp_path, rows=100)
    doubled = pd.concat([frame, frame.head(20)], ignore_index=True)
    report = validate_frame(make_config(), doubled)
    assert _failed(report) == {"duplicates"}
    assert next(c for c in report.failed()).observed == "20 of 120"


def test_severities_are_the_yamls(tmp_path: Path) -> None:
    frame = _frame(tmp_path, size=[1e6] * 3 + [50.0] * 297)
    warned = make_config(validation={"severity": {"range:size": "warning", "outliers": "off"}})
    assert _failed(validate_frame(warned, frame)) == {"range:size"}
    silent = make_config(validation={"severity": {"range": "off", "outliers": "off"}})
    assert not {check.name for check in validate_frame(silent, frame).checks} & {"range", "outliers"}
    with pytest.raises(DataError, match="constant:steps"):
        validate_frame(make_config(validation={"severity": {"constant": "critical"}}), _frame(tmp_path, steps=1))
    with pytest.raises(ConfigError, match="did you mean 'outliers'"):
        validate_frame(make_config(validation={"severity": {"outlier": "off"}}), frame)
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        validate_frame(make_config(validation={"severity": {"range:sise": "off"}}), frame)


def test_leakage_between_the_sides_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our splits have none; a faulty one would be caught."""
    frame = _frame(tmp_path)
    doubled = pd.concat([frame, frame], ignore_index=True)
    config = make_config(validation={"severity": {"duplicates": "off"}})
    assert not _failed(validate_frame(config, doubled))
    monkeypatch.setattr("steps.validate.in_test", lambda _, rows: np.arange(len(rows)) >= len(rows) / 2)
    _stopped(config, doubled, "leakage: 300 of 600, expected at most 0.0% rows: test rows whose equal row")
    timely = make_config(split={"by": "time", "column": "when"}, validation={"severity": {"duplicates": "off"}})
    assert _failed(validate_frame(timely, doubled)) == {"leakage"}


def test_an_entity_on_both_sides_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(split={"by": "entity", "column": "steps"})
    frame = _frame(tmp_path, config, steps=[i % 60 for i in range(300)])
    assert not _failed(validate_frame(config, frame))
    monkeypatch.setattr("steps.validate.in_test", lambda _, rows: np.arange(len(rows)) % 7 == 0)
    _stopped(config, frame, "leakage:", "whose entity is in training")


def test_drift_is_measured_from_the_reference_when_there_are_rows_enough(tmp_path: Path) -> None:
    old = _frame(tmp_path, rows=800)
    new = old.assign(size=old["size"] * 0.5, colour="red")
    assert _failed(validate_frame(make_config(), new, old)) >= {"drift:size", "drift:colour"}
    assert not [c for c in validate_frame(make_config(), new.head(400), old).checks if c.name == "drift"]
    assert not [c for c in validate_frame(make_config(), new).checks if c.name == "drift"]


def test_the_report_holds_no_value_of_personal_or_text_columns(tmp_path: Path) -> None:
    columns = {
        "size": {"type": "number", "range": [0, 100]},
        "mail": {"type": "text", "personal": True},
        "note": {"type": "text", "feature": False},
    }
    config = make_config(columns=columns)
    frame = _frame(
        tmp_path, config, mail=[f"{i}{PERSON}" for i in range(300)], note=[f"{NAME} {i}" for i in range(300)]
    )
    report = validate_frame(config, frame)
    html = summarise(config, frame)
    for text in (report.model_dump_json(), html):
        assert PERSON not in text and NAME not in text and frame["mail"][0] not in text
    assert not [
        check for check in report.checks if check.column == "mail" and check.name in ("leak", "drift", "constant")
    ]


def test_the_summary_is_a_page_about_the_public_columns(tmp_path: Path) -> None:
    frame = _frame(tmp_path, size=[np.nan] * 30 + [1.0] * 270)
    html = summarise(make_config(), frame)
    assert html.lstrip().lower().startswith(("<!doctype html", "<html")) and "colour" in html and len(html) < 6_000_000


def test_great_expectations_failing_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import great_expectations.expectations as expectations

    from models.errors import WorkError

    def broken(self: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError(PERSON)

    monkeypatch.setattr(expectations.ExpectTableRowCountToBeBetween, "_validate", broken)
    with pytest.raises(WorkError, match="could not check rows of 'the table'") as caught:
        validate_frame(make_config(), _frame(tmp_path))
    assert PERSON not in str(caught.value)


def _column(values: Any) -> "pd.Series[Any]":
    return pd.Series(values)


def test_one_column_that_tells_the_target_is_found() -> None:
    rng = np.random.default_rng(0)
    target = _column(rng.choice(["a", "b", "c"], 400))
    assert told_alone(target.str.upper(), target, 0) == 1
    assert told_alone(target.map({"a": 3.0, "b": 1.0, "c": 2.0}), target, 0) == 1
    assert told_alone(_column(np.arange(400.0)), target, 0) == 0, "an identifier"
    assert told_alone(_column([f"k{i}" for i in range(400)]), target, 0) == 0, "an identifier as text"
    gaps = target.where(rng.random(400) < 0.8).astype(object)
    assert told_alone(gaps, target, 0) == 1, "where it has a value it tells the target"
    assert told_alone(_column(np.where(target == "a", 1.0, np.nan)), target.where(target == "a", "b"), 0) == 1
    rare = _column(["no"] * 398 + ["yes"] * 2)
    assert told_alone(_column(rng.random(400)), rare, 0) == 0, "a rare class makes accuracy high, not a leak"
    number = _column(rng.normal(size=400))
    assert told_alone(number * 3 + 1, number, 0) > 0.99
    assert told_alone(_column(rng.normal(size=400)), number, 0) < 0.5


@pytest.mark.parametrize("method", ["jensenshannon", "psi", "ks", "wasserstein"])
def test_drift_scores_are_small_without_drift_and_large_with_it(method: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = _column(rng.normal(size=5000)), _column(rng.normal(size=5000))
    assert drift_score(method, a, a) == pytest.approx(0, abs=1e-9)
    assert drift_score(method, a, b) < 0.06 < 0.2 < drift_score(method, a, b + 1)
    words, others = _column(["x", "y"] * 500), _column(["x"] * 900 + ["z"] * 100)
    assert drift_score(method, words, words) == 0 and drift_score(method, words, others) > 0.2
    dates = _column(pd.date_range("2024-01-01", periods=1000, freq="h"))
    assert drift_score(method, dates, dates) == pytest.approx(0, abs=1e-9)
    assert drift_score(method, dates, dates + pd.Timedelta(days=30)) > 0.2
    assert drift_score(method, a, _column([np.nan])) == 1


def test_checks_are_addressed_as_in_the_yaml() -> None:
    check = Check(name="range", column="age", severity="critical", passed=False, observed="", expected="")
    assert check.key == "range:age" and json.loads(check.model_dump_json())["column"] == "age"
