"""Gauges of monitoring: what they tell, how much, and while the database is away."""

import threading
import time
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bentos import gauges as module
from bentos.gauges import Gauges, read
from stacks.findings import record_findings
from stacks.ledger import Ledger
from tests.bentos.following import READY_SECONDS, crown, following, is_ready
from tests.bentos.samples import write
from tests.bentos.watched import NOW, alert, finding, findings, watched

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(gauges: Gauges) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(gauges.page().decode())
        for sample in family.samples
    }


def _of(samples: Samples, name: str, **labels: str) -> list[float]:
    return [value for (found, of), value in samples.items() if found == name and labels.items() <= dict(of).items()]


def _at(moment: datetime) -> Gauges:
    return Gauges(clock=moment.timestamp)


def test_the_newest_findings_and_open_alerts_are_told(url: str) -> None:
    ledger = Ledger(url)
    watched(ledger)
    gauges = _at(NOW)
    gauges.reading = read(ledger, ["wine", "other"])
    told, wine = _samples(gauges), {"model": "wine", "version": "2"}
    assert _of(told, "gauntlet_drift_share", **wine) == [0.5]
    assert _of(told, "gauntlet_column_drift", **wine, column="ash") == [pytest.approx(0.3)]
    assert _of(told, "gauntlet_performance", **wine, metric="accuracy") == [pytest.approx(0.75)]
    assert _of(told, "gauntlet_performance", **wine, metric="f1") == [pytest.approx(0.7)]
    ends = [_of(told, f"gauntlet_performance_{end}", **wine) for end in ("low", "high", "estimate", "holdout", "limit")]
    assert [value for (value,) in ends] == pytest.approx([0.71, 0.79, 0.77, 0.93, 0.8])
    assert _of(told, "gauntlet_labels") == [300]
    assert _of(told, "gauntlet_quality_score") == [88]
    rows = {check: _of(told, "gauntlet_window_rows", check=check) for check in ("performance", "quality", "drift")}
    assert rows == {"performance": [400], "quality": [400], "drift": [400]}
    states = {check: _of(told, "gauntlet_finding_state", check=check) for check in module._ROWS}
    assert states == {
        "performance": [1],
        "quality": [0],
        "drift": [1],
        "prediction_drift": [-1],
        "fairness": [0],
    }
    assert _of(told, "gauntlet_finding_age_seconds", check="drift") == [-300]
    assert _of(told, "gauntlet_open_alerts", model="wine", severity="critical") == [1]
    assert _of(told, "gauntlet_open_alerts", model="wine", severity="warning") == [0], "that one is over"
    assert len(_of(told, "gauntlet_open_alerts", model="other")) == 3


def test_columns_are_bounded_and_what_is_gone_is_told_no_more(url: str) -> None:
    ledger, gauges = Ledger(url), _at(NOW)
    ledger.append("promote", "wine", 2, actor="ada")
    many = {f"c{number:03}": number / 1_000 for number in range(400)}
    record_findings(ledger, [finding(1, "drift", columns=many)])
    gauges.reading = read(ledger, ["wine"])
    effects = _of(_samples(gauges), "gauntlet_column_drift")
    assert len(effects) == 50 and min(effects) == 0.350
    record_findings(ledger, [finding(0, "drift", version=3, columns={"hue": 0.2})])
    gauges.reading = read(ledger, ["wine"])
    told = _samples(gauges)
    assert _of(told, "gauntlet_column_drift", version="3", column="hue") == _of(told, "gauntlet_column_drift") == [0.2]


def test_a_database_that_is_away_leaves_the_page_and_the_age_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    watched(Ledger(url))
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    now = [NOW.timestamp()]
    gauges = Gauges(clock=lambda: now[0])
    assert "gauntlet_drift_share{" not in gauges.page().decode()
    gauges.look(["wine"])
    before = _samples(gauges)
    monkeypatch.setenv("GAUNTLET_DATABASE", "postgresql://somebody:hidden@127.0.0.1:9/none")
    now[0] += 3_600
    for _ in range(2):
        gauges.look(["wine"])
    after = _samples(gauges)
    assert _of(after, "gauntlet_drift_share") == _of(before, "gauntlet_drift_share") == [0.5]
    assert _of(after, "gauntlet_finding_age_seconds", check="drift") == [3_300]
    said = [record.getMessage() for record in caplog.records if record.name == "gauntlet.metrics"]
    assert len(said) == 1 and "cannot be read" in said[0] and "hidden" not in said[0], "said once"
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    gauges.look(["wine"])
    assert gauges.reading.findings


def test_one_thread_reads_and_a_page_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    looks, ended, gauges = [], threading.Event(), Gauges()
    looked = threading.Event()

    def models() -> list[str]:
        looks.append(time.monotonic())
        if len(looks) == 3:
            looked.set()
        return ["wine"]

    monkeypatch.setattr(module, "EVERY_SECONDS", 0.05)
    gauges.watch(models, ended)
    assert looked.wait(20)
    ended.set()
    assert min(later - former for former, later in pairwise(looks)) >= 0.04
    monkeypatch.setattr(module, "read", lambda *_: pytest.fail("a page reads the database"))
    assert b"gauntlet_open_alerts" in gauges.page()


@pytest.mark.timeout(600)
def test_two_workers_that_follow_tell_the_same_once_each(tmp_path: Path) -> None:
    release = write(tmp_path / "wine", "wine", "logistic_regression")
    ledger = Ledger(f"sqlite:///{tmp_path / 'gauntlet.db'}")
    crown(ledger, 2, release)
    record_findings(ledger, findings())
    alert(ledger, "performance", raised=1)
    with following(tmp_path, workers=2, GAUNTLET_SERVE="wine") as service:
        service.until(lambda: is_ready(service), READY_SECONDS)
        told = '\ngauntlet_drift_share{model="wine",version="2"} 0.5\n'
        service.until(lambda: told in service.ask("GET", "/metrics")[1])
        pages = [page for page in (service.ask("GET", "/metrics")[1] for _ in range(12)) if told in page]
        assert pages and {page.count("\ngauntlet_drift_share{") for page in pages} == {1}
        status, summary = service.ask("GET", "/monitoring/summary")
        assert (status, summary["champion"]["version"], len(summary["trend"])) == (200, 2, 8)
        assert [open_alert["subject"] for open_alert in summary["alerts"]] == ["performance"]
