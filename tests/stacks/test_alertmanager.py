"""Alerts in a real Alertmanager with the committed routes: one each, paged, and over when they are over."""

import os
import queue
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stacks.alerts import Message, Subject
from stacks.orchestrator.tether import tethered
from steps.sinks import to_alertmanager
from tests.ports import free_port
from tests.stacks.test_observability import (
    _asks,
    _pager,
    _says,
    _tool,
    _until,
    _with_addresses,
)

Received = queue.Queue[tuple[float, dict[str, Any]]]


@pytest.mark.parametrize(
    ("severity", "receiver"),
    [("page", "on-call"), ("critical", "on-call"), ("warning", "team"), ("info", "team"), ("ticket", "team")],
)
def test_each_severity_has_its_way(severity: str, receiver: str) -> None:
    command = (_tool("amtool"), "config", "routes", "test", "--config.file=alertmanager.yml")
    assert _says(*command, "alertname=GauntletDrift", "model=wine", f"severity={severity}").strip() == receiver


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[tuple[int, Received]]:
    """Its port, and what its pager received; it groups as the committed file says, only sooner."""
    program = _tool("prometheus-alertmanager", "alertmanager")
    with _pager() as (pager, received):
        file = _with_addresses("alertmanager.yml", tmp_path, _9095=pager)
        text = file.read_text()
        assert "group_wait: 5s" in text and "group_interval: 1m" in text
        file.write_text(
            text.replace("group_wait: 5s", "group_wait: 0s").replace("group_interval: 1m", "group_interval: 1s")
        )
        port, log = free_port(), tmp_path / "alertmanager.log"
        command = [program, "--config.file=alertmanager.yml", "--storage.path=alerts", "--cluster.listen-address="]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with (
            log.open("wb") as output,
            tethered(command, env=dict(os.environ), cwd=tmp_path, stdout=output, stderr=output),
        ):
            _until(lambda: _asks(port, "/api/v2/status") is not None, "Alertmanager does not answer", log)
            yield port, received


def message(subject: Subject = "performance", **more: Any) -> Message:
    at = datetime.now(UTC) - timedelta(hours=1)
    plain = {"model": "wine", "version": 3, "subject": subject, "severity": "critical", "state": "raised"}
    facts = {"said": "f1_macro 0.61", "then": "A training starts.", "at": at, "raised": at, "runbook": "r/p.md"}
    return Message.model_validate({**plain, **facts, **more})


def active(port: int) -> list[tuple[str, str]]:
    """Name and severity of the alerts that last."""
    found = [(one["labels"]["alertname"], one["labels"]["severity"]) for one in _asks(port, "/api/v2/alerts")]
    return sorted(found)


def test_one_alert_is_there_until_it_is_over(alertmanager: tuple[int, Received], tmp_path: Path) -> None:
    port, received = alertmanager
    url = f"http://127.0.0.1:{port}/"
    first = message()
    to_alertmanager(url, first)
    to_alertmanager(url, first.model_copy(update={"state": "lasting", "version": 4, "said": "f1_macro 0.58"}))
    assert active(port) == [("GauntletPerformance", "critical")]
    (there,) = _asks(port, "/api/v2/alerts")
    assert datetime.fromisoformat(there["endsAt"]) > datetime.now(UTC) + timedelta(days=93), "a quarter and a day"
    _, page = received.get(timeout=120)
    assert [one["status"] for one in page["alerts"]] == ["firing"]
    assert page["alerts"][0]["labels"] == {"alertname": "GauntletPerformance", "model": "wine", "severity": "critical"}
    assert page["alerts"][0]["annotations"]["runbook_url"] == "r/p.md"
    to_alertmanager(url, first.model_copy(update={"state": "recovered", "then": "f1_macro 0.82"}))
    assert active(port) == []
    statuses = ["firing"]
    while statuses[-1] == "firing":
        statuses += [one["status"] for one in received.get(timeout=120)[1]["alerts"]]
    assert statuses[-1] == "resolved" and len(statuses) <= 3


def test_a_severity_that_changed_takes_the_place_of_the_one_before(alertmanager: tuple[int, Received]) -> None:
    port, _ = alertmanager
    url = f"http://127.0.0.1:{port}"
    first = message("prediction_drift", severity="info")
    to_alertmanager(url, first)
    worse = first.model_copy(update={"state": "lasting", "severity": "critical", "was": "info"})
    to_alertmanager(url, worse)
    assert active(port) == [("GauntletPredictionDrift", "critical")]
    to_alertmanager(url, worse.model_copy(update={"state": "recovered", "was": None}))
    assert active(port) == []


def test_an_alert_of_a_clock_that_was_ahead_is_taken(alertmanager: tuple[int, Received]) -> None:
    port, _ = alertmanager
    ahead = datetime.now(UTC) + timedelta(days=365)
    to_alertmanager(f"http://127.0.0.1:{port}", message("drift", raised=ahead, at=ahead))
    to_alertmanager(f"http://127.0.0.1:{port}", message("rollback"))
    assert active(port) == [("GauntletDrift", "critical"), ("GauntletRollback", "critical")]
    to_alertmanager(f"http://127.0.0.1:{port}", message("drift", raised=ahead, at=ahead, state="recovered"))
    assert active(port) == [("GauntletRollback", "critical")]
