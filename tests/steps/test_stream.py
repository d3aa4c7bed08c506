"""A real stream whose demand and weather shift: it is seen week by week, named, and answered by training anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stacks.findings import Finding
from tests.steps.bikes import BEGIN, Hours, Trained, gained, joined, looped, watched

Proof = Callable[[str, object, str], None]
DEALS = 2

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def hours(shared_data: Path) -> Hours:
    if not (shared_data / "bike_sharing").is_dir():
        pytest.skip("no bike_sharing in the real data")
    return Hours.read(shared_data)


def judged(findings: tuple[Finding, ...], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check and finding.state != "unjudged"]


def found(findings: list[Finding]) -> int:
    return sum(finding.state == "found" for finding in findings)


def test_a_real_shift_is_seen_and_its_columns_are_named(hours: Hours, tmp_path: Path, proof: Proof) -> None:
    trained = Trained.on(hours.between(None, BEGIN), 1, tmp_path)
    findings = watched(f"sqlite:///{tmp_path / 'log.db'}", trained, hours)
    performance, drift = judged(findings, "performance"), judged(findings, "drift")
    assert (len(performance), len(drift)) == (78, 76)
    named = {name: sum(name in finding.named for finding in drift) for name in trained.champion.release.schema.inputs}
    line = "bike_sharing watched for 78 weeks by a champion of early 2011: weeks with performance lost; with drift"
    proof(line, 78, f"{found(performance)}; {found(drift)} of {len(drift)}; columns by weeks: {named}")
    assert found(performance) == 78
    assert found(drift) >= 50
    assert min(named[name] for name in ("season", "temp", "atemp")) >= 74
    assert max(named[name] for name in ("hr", "weekday", "workingday")) == 0, "every three weeks hold the same ones"
    assert performance[-10].figures["mae"] > 4 * trained.holdout


def test_the_same_rows_dealt_anew_over_time_raise_none(hours: Hours, tmp_path: Path, proof: Proof) -> None:
    performance, drift = [], []
    for seed in range(DEALS):
        dealt = hours.dealt_anew(seed)
        trained = Trained.on(dealt.between(None, BEGIN), 1, tmp_path / str(seed))
        findings = watched(f"sqlite:///{tmp_path / f'{seed}.db'}", trained, dealt)
        performance += judged(findings, "performance")
        drift += judged(findings, "drift")
    named = sum(bool(finding.named) for finding in drift)
    line = "bike_sharing dealt anew over time, so that nothing shifts: weeks with any finding, none"
    proof(line, len(performance), f"{found(performance)} performance, {found(drift)} drift; {named} name any column")
    assert (len(performance), len(drift)) == (78 * DEALS, 76 * DEALS)
    assert found(performance) == found(drift) == 0
    assert named <= 0.05 * len(drift)


def test_training_anew_lowers_the_error_of_the_month_that_follows(hours: Hours, tmp_path: Path, proof: Proof) -> None:
    first = Trained.on(hours.between(None, BEGIN), 1, tmp_path)
    months = looped(f"sqlite:///{tmp_path / 'log.db'}", first, hours, tmp_path)
    assert len(months) == 18 and all(month.trouble for month in months)
    later = [month for month in months if month.version > 1]
    truth = np.concatenate([month.truth for month in later])
    sides = joined([month.frozen for month in later]), joined([month.answers for month in later])
    mae, rmse = (gained(*sides, truth, metric) for metric in ("mae", "rmse"))
    each = [gained(month.frozen, month.answers, month.truth) for month in later]
    better, worse = sum(month.low > 0 for month in each), sum(month.high < 0 for month in each)
    result = f"MAE lower by {mae.estimate:.1f} [{mae.low:.1f}, {mae.high:.1f}], "
    result += f"RMSE by {rmse.estimate:.1f} [{rmse.low:.1f}, {rmse.high:.1f}]; {better} months better, {worse} worse"
    proof("bike_sharing trained anew each month in trouble: error of the months that follow", len(later), result)
    assert mae.low > 0 and rmse.low > 0
    assert len(later) == 17 and better >= 14 and worse <= 1
