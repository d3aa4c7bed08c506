"""Findings: kept as they were, read by window, model, version and check, on both engines."""

from datetime import UTC, datetime, timedelta

import pytest

from stacks.findings import Finding, deciding, newest_findings, read_findings, record_findings, scores
from stacks.ledger import Ledger

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)


def found(days: int = 0, version: int = 3, check: str = "drift", **more: object) -> Finding:
    until = NOW + timedelta(days=days)
    return Finding.model_validate(
        {"model": "wine", "version": version, "check": check, "since": until - timedelta(days=7), "until": until}
        | {"looked": until, "state": "found", "said": "ash drifted", "figures": {"rows": 512.0}}
        | {"columns": {"ash": 0.21}, "named": ("ash",), "run": "r"}
        | more
    )


def test_a_finding_is_read_as_it_was_written(url: str) -> None:
    ledger = Ledger(url)
    record_findings(ledger, [found(), found(7, state="unjudged", said="too few rows")])
    assert read_findings(ledger, "wine") == (found(), found(7, state="unjudged", said="too few rows"))


def test_findings_are_chosen_by_window_version_and_check(url: str) -> None:
    ledger = Ledger(url)
    written = [found(14), found(7, version=4), found(0, check="quality"), found(0, model="other")]
    record_findings(ledger, written)
    assert [f.until for f in read_findings(ledger, "wine")] == [NOW + timedelta(days=d) for d in (0, 7, 14)]
    assert read_findings(ledger, "wine", since=NOW, until=NOW + timedelta(days=7)) == (written[1],)
    assert read_findings(ledger, "wine", version=4) == (written[1],)
    assert read_findings(ledger, "wine", checks=["quality"]) == (written[2],)


def test_where_nothing_was_ever_written_nothing_is_found_and_nothing_made(url: str) -> None:
    assert read_findings(Ledger(url), "wine") == ()


def test_a_figure_that_is_no_number_keeps_none_of_them(url: str) -> None:
    ledger = Ledger(url)
    with pytest.raises(ValueError):
        record_findings(ledger, [found(), found(figures={"rows": float("nan")})])
    assert read_findings(ledger, "wine") == ()


def test_the_newest_of_each_check_is_that_of_the_newest_window(url: str) -> None:
    ledger = Ledger(url)
    quality = found(3, check="quality")
    record_findings(ledger, [found(14, said="first"), found(14), found(7), quality, found(28, model="other")])
    assert newest_findings(ledger, ["wine"]) == (quality, found(14))
    assert {finding.model for finding in newest_findings(ledger, ["wine", "other", "third"])} == {"wine", "other"}
    assert newest_findings(ledger, []) == ()


def test_a_finding_of_the_future_is_not_the_newest(url: str) -> None:
    ledger = Ledger(url)
    ahead = found(int((datetime.now(UTC) - NOW).days) + 365)
    record_findings(ledger, [found(0), ahead, found(7)])
    assert newest_findings(ledger, ["wine"]) == (found(7),)
    assert len(read_findings(ledger, "wine")) == 3


@pytest.mark.parametrize(
    ("figures", "metric", "others"),
    [
        (
            {"f1": 0.7, "roc_auc": 0.8, "roc_auc_low": 0.7, "roc_auc_high": 0.9, "labels": 90.0},
            "roc_auc",
            {"f1", "roc_auc"},
        ),
        ({"answers": 9.0, "estimated_f1": 0.7, "estimated_f1_low": 0.6, "estimated_f1_high": 0.8}, "f1", set()),
        (
            {"estimated_f1_low": 0.6, "roc_auc": 0.8, "roc_auc_low": 0.7, "limit": 0.6, "holdout": 0.9},
            "roc_auc",
            {"roc_auc"},
        ),
        ({"coverage": 0.1}, None, set()),
        (
            {"concept_gap": 0.1, "concept_gap_low": 0.0, "concept_gap_high": 0.2, "r2": 0.5, "r2_low": 0.4}
            | {"target_effect": 0.2, "estimate_error": 0.01, "unfit_labels": 3.0},
            "r2",
            {"r2"},
        ),
    ],
)
def test_the_metric_that_decides_is_the_one_with_an_interval(
    figures: dict[str, float], metric: str | None, others: set[str]
) -> None:
    assert deciding(figures) == metric
    assert set(scores(figures)) == others


def test_the_metric_that_decides_now_is_it_wherever_it_was_measured() -> None:
    before = {"roc_auc": 0.8, "roc_auc_low": 0.7, "f1": 0.6}
    assert (deciding(before, "f1"), deciding(before, "accuracy"), deciding(before)) == ("f1", "roc_auc", "roc_auc")
    assert deciding({"estimated_f1": 0.5, "roc_auc_low": 0.1}, "f1") == "f1"
