"""Fairness in card and report: what is shown, in which order."""

import json

from steps.document import Bullets, Table, Text
from steps.fairness_report import FairnessReport, Gap, Group, Grouping, PlainModel, Rate, Side
from steps.fairness_section import fairness_part


def _gap(rate: str, low: float) -> Gap:
    higher, lower = Side(group="1", rate=0.9, of=200, rows=300), Side(group="0", rate=0.6, of=80, rows=120)
    both = {"higher": higher, "lower": lower}
    return Gap(rate=rate, columns=("sex",), positive="ill", value=0.3, low=low, high=0.4, **both)


def _report(**more: object) -> dict[str, object]:
    groups = (
        Group(values=("1",), rows=300, judged=True, rates={"tpr": Rate(value=0.9, low=0.85, high=0.95)}),
        Group(values=("0",), rows=12, judged=False, rates={}),
    )
    report = FairnessReport(
        positive="ill",
        confidence=0.95,
        resamples=1_000,
        min_rows=50,
        groupings=(Grouping(columns=("sex",), groups=groups),),
        gaps=(_gap("fpr", 0.05), _gap("tpr", 0.2)),
        **more,
    )
    found: dict[str, object] = json.loads(report.model_dump_json())
    return found


def test_the_worst_gap_comes_first_and_every_group_is_shown() -> None:
    said, gaps, groups = fairness_part(_report()).blocks
    assert isinstance(said, Text) and "'ill'" in said.text and "under 50 rows" in said.text
    assert isinstance(gaps, Table) and [row[0].text for row in gaps.rows] == [
        "true positive rate",
        "false positive rate",
    ]
    assert [cell.text for cell in gaps.rows[0][1:]] == ["sex", "1: 0.9 of 200", "0: 0.6 of 80", "0.3 (0.2 to 0.4)"]
    assert isinstance(groups, Table) and groups.columns == ("by", "group", "rows", "true positive rate")
    assert [[cell.text for cell in row] for row in groups.rows] == [
        ["sex", "1", "300", "0.9 (0.85 to 0.95)"],
        ["sex", "0", "12, not judged", "–"],
    ]


def test_the_plain_model_and_notes_stand_below() -> None:
    plain = PlainModel(metric=0.88, reweighed=0.87, gaps=(_gap("tpr", 0.25),))
    *_, said, gaps, notes = fairness_part(_report(plain=plain, notes=("few rows",))).blocks
    assert isinstance(said, Text) and "Without weights the same model has 0.88, with them 0.87" in said.text
    assert isinstance(gaps, Table) and gaps.rows[0][-1].text == "0.3 (0.25 to 0.4)"
    assert notes == Bullets(("few rows",))


def test_a_regressions_mean_errors_are_not_said_to_be_resampled() -> None:
    groups = (Group(values=("1",), rows=300, judged=True, rates={"mean_error": Rate(value=2.0, low=1.0, high=3.0)}),)
    grouping = Grouping(columns=("sex",), groups=groups)
    report = FairnessReport(positive="", confidence=0.9, resamples=0, min_rows=50, groupings=(grouping,))
    said, table = fairness_part(json.loads(report.model_dump_json())).blocks
    assert isinstance(said, Text) and "90 % intervals by the normal distribution" in said.text
    assert "resamples" not in said.text
    assert isinstance(table, Table) and table.columns[-1] == "mean error"


def test_nothing_measured_is_no_part() -> None:
    assert fairness_part(None).blocks == ()
