"""Alerts and dashboard: sound by their own tools, about metrics that exist, and a page within a minute of a kill."""

import http.client
import http.server
import json
import os
import queue
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client import CollectorRegistry

from bentos.gauges import Gauges
from bentos.metrics import Metrics
from stacks.home import clone_dir
from stacks.orchestrator.tether import tethered
from steps.build import build_bento, unpack
from steps.serve import serving
from tests.bentos.samples import write
from tests.ports import free_port

FOLDER = clone_dir() / "stacks" / "observability"
_METRIC = re.compile(r"\b(?:\w+:)*gauntlet[\w:]*")
_STRING = re.compile(r'"[^"]*"')


def _tool(*names: str) -> str:
    """Path of the first of these programs that is installed."""
    for name in names:
        if found := shutil.which(name):
            return found
    missing = f"{names[0]} is not installed: Debian has it in prometheus or prometheus-alertmanager"
    assert os.environ.get("GAUNTLET_REQUIRE_SERVICES") != "1", missing
    pytest.skip(missing)


def _says(*command: str) -> str:
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _rules(kind: str) -> dict[str, str]:
    """Names and expressions of the rules of a kind, `alert` or `record`."""
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return {rule[kind]: rule["expr"] for group in groups for rule in group["rules"] if kind in rule}


def _asked() -> dict[str, str]:
    """Every expression of the dashboard by its panel, with its variables filled in."""
    board = json.loads((FOLDER / "grafana" / "gauntlet.json").read_text())
    asked = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    asked |= {annotation["name"]: annotation["expr"] for annotation in board["annotations"]["list"]}
    return {name: text.replace("$__rate_interval", "1m").replace("$model", "wine") for name, text in asked.items()}


def test_the_files_are_what_their_tools_take() -> None:
    promtool = _tool("promtool")
    assert "valid prometheus config" in _says(promtool, "check", "config", "prometheus.yml")
    assert f"{len(_rules('alert')) + len(_rules('record'))} rules found" in _says(
        promtool, "check", "rules", "rules.yml"
    )
    assert "2 receivers" in _says(_tool("amtool"), "check-config", "alertmanager.yml")


def test_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in _says(_tool("promtool"), "test", "rules", "rules_test.yml")


def test_every_alert_is_shown_firing_and_not_firing() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for wanted in (True, False):
        shown = {case["alertname"] for case in cases if bool(case.get("exp_alerts")) == wanted}
        assert shown == set(_rules("alert"))


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    registry.register(Gauges())
    of_kind = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    there_is = {metric.name + end for metric in registry.collect() for end in of_kind[metric.type]}
    recorded, asked = _rules("record"), _asked()
    assert len(there_is) > 15 and len(asked) > 20
    for name, expression in (_rules("alert") | recorded | asked).items():
        used = set(_METRIC.findall(_STRING.sub("", expression)))
        assert used <= there_is | set(recorded), name
    shown = " ".join([*asked.values(), *recorded.values()])
    assert not [name for name in there_is if name.removesuffix("_sum").removesuffix("_count") not in shown]


def test_the_dashboard_s_expressions_are_expressions(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(_asked().values())]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in _says(_tool("promtool"), "check", "rules", str(path))


@contextmanager
def _pager() -> Iterator[tuple[int, "queue.Queue[tuple[float, dict[str, Any]]]"]]:
    """A webhook's port, and what it received, with the time."""
    received: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue()

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put((time.monotonic(), json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, received
        server.shutdown()


def _with_addresses(name: str, to: Path, **addresses: int) -> Path:
    """A committed file as it is, intervals too, but with other ports at its addresses; each must be there once."""
    text = (FOLDER / name).read_text()
    for port, other in addresses.items():
        assert text.count(f"127.0.0.1:{port[1:]}") == 1
        text = text.replace(f"127.0.0.1:{port[1:]}", f"127.0.0.1:{other}")
    (to / name).write_text(text)
    return to / name


def _asks(port: int, path: str) -> Any:
    """JSON that a server of ours answers, None while it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def _value(prometheus: int, expression: str) -> float | None:
    told = _asks(prometheus, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    found = told and told["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def _until(done: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline, f"{what}: {log.read_text()[-2000:]}"
        time.sleep(0.1)


@contextmanager
def _watching(folder: Path, service: int, pager: int) -> Iterator[int]:
    """A real Prometheus and Alertmanager with the committed files; the port of the first."""
    prometheus, alertmanager = free_port(), free_port()
    log = folder / "watching.log"
    shutil.copy(FOLDER / "rules.yml", folder)
    _with_addresses("prometheus.yml", folder, _3000=service, _9093=alertmanager)
    _with_addresses("alertmanager.yml", folder, _9095=pager)
    commands = [
        [
            _tool("prometheus"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=tsdb",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ],
        [
            _tool("prometheus-alertmanager", "alertmanager"),
            "--config.file=alertmanager.yml",
            "--storage.path=alerts",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
            "--cluster.listen-address=",
        ],
    ]
    with log.open("wb") as output, ExitStack() as stack:
        for command in commands:
            stack.enter_context(tethered(command, env=dict(os.environ), cwd=folder, stdout=output, stderr=output))
        _until(lambda: _asks(alertmanager, "/api/v2/status") is not None, "Alertmanager does not answer", log)
        _until(lambda: _value(prometheus, 'up{job="gauntlet"}') == 1, "Prometheus does not reach the service", log)
        yield prometheus


def _kill(port: int) -> None:
    """`kill -9` of all processes of ours that listen on a port: the service's workers and its supervisor."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(found.laddr.port == port and found.status == "LISTEN" for found in process.net_connections("tcp")):
                process.kill()


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_from_a_killed_service_to_a_received_page_in_under_a_minute(
    tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    _tool("prometheus")
    release = write(tmp_path / "wine", "wine", "logistic_regression")
    store = tmp_path / "bentos"
    unpack(build_bento(release.directory, "wine", 1, {}, tmp_path), store / "wine" / "000001")
    folder = tmp_path / "watching"
    folder.mkdir()
    with (
        _pager() as (pager, received),
        serving("wine:000001", store) as endpoint,
        _watching(folder, endpoint.port, pager) as prometheus,
    ):
        # The page is about the kill: with the service's own metrics in, nothing fires before.
        assert (_value(prometheus, "min(gauntlet_worker_memory_bytes)") or 0) > 2**20
        assert _value(prometheus, 'ALERTS{alertname="GauntletDown"}') is None
        killed = time.monotonic()
        _kill(endpoint.port)
        pages = _pages(received, killed + 300)
        seconds, labels = next((at - killed, of) for at, of in pages if of["alertname"] == "GauntletDown")
    assert labels["instance"] == f"127.0.0.1:{endpoint.port}"
    proof("From a killed service to a received page, real Prometheus and Alertmanager", 1, f"{seconds:.0f} s")


def test_a_page_of_a_killed_service_is_sent_within_half_a_minute() -> None:
    """By the committed intervals, each waited for to its end: the page itself is timed by a proof."""
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]
    rules = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
    down = next(rule for rule in rules if rule.get("alert") == "GauntletDown")
    route = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())["route"]
    waits = [prometheus["scrape_interval"], prometheus["scrape_timeout"], prometheus["evaluation_interval"]]
    # One evaluation finds it, and another one that it has lasted.
    waits += [prometheus["evaluation_interval"], down["for"], route["group_wait"]]
    assert sum(int(wait.removesuffix("s")) for wait in waits) <= 35


def _pages(
    received: "queue.Queue[tuple[float, dict[str, Any]]]", deadline: float
) -> Iterator[tuple[float, dict[str, str]]]:
    """When a page came, and its alert's labels, one after the other; a failure where none comes until the deadline."""
    while True:
        try:
            at, page = received.get(timeout=max(0.01, deadline - time.monotonic()))
        except queue.Empty:
            pytest.fail("five minutes after the kill no page had come")
        for alert in page["alerts"]:
            if alert["status"] == "firing":
                yield at, alert["labels"]
