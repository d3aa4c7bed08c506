"""`make up`: free ports, one at a time, nothing left behind; with the real services, where counts are proved."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.up import free_ports, services_environment
from stacks.orchestrator.announcement import announced_url
from tests.flows.conftest import Place
from tests.ports import free_port, ports_of_up

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0


def _of_home(place: Place) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GAUNTLET_HOME") == str(place.home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _is_server(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name().startswith("python") and "service.py" in process.cmdline()[-1]
    return False


def _await(there: Callable[[], Any], patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := there()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _obey_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_taken_ports_are_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        taken = door.getsockname()[1]
        first, second = free_ports((taken, taken))
    assert taken < first < second


def test_the_services_get_this_clones_homes_and_no_other_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("GAUNTLET_DATA", "relative")
    env = services_environment(4300, 5100)
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert Path(env["GAUNTLET_DATA"]).is_absolute()
    assert env["PATH"].startswith(str(Path(sys.executable).parent))


SERVICE = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", PORT), Answer).serve_forever()
"""
STARTER = """
import subprocess, sys, pathlib
from stacks.orchestrator.tether import tethered
with tethered([sys.executable, "-m", "flows.up", "hold", sys.argv[1]]) as process:
    print("there", flush=True)
    sys.exit(process.wait())
"""


@pytest.fixture
def held(place: Place, tmp_path: Path) -> "subprocess.Popen[str]":
    """A Procfile of two small services, held as `make up` holds the real ones."""
    port = free_port()
    (tmp_path / "service.py").write_text(SERVICE.replace("PORT", str(port)))
    sleeper = "python -c 'import time; time.sleep(600)'"
    (tmp_path / "Procfile").write_text(f"server: python {tmp_path / 'service.py'}\nother: {sleeper} & {sleeper}\n")
    env = {**place.env, "PREFECT_API_URL": f"http://127.0.0.1:{port}"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STARTER), str(tmp_path / "Procfile")],
        env=env,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=_obey_ctrl_c,
    )


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill -9", "Ctrl-C", "kill"])
def test_nothing_is_left_however_it_ends(place: Place, held: "subprocess.Popen[str]", sent: signal.Signals) -> None:
    prefect_home = place.home / "prefect"
    assert _await(lambda: announced_url(prefect_home), 240)
    assert len(_of_home(place)) > 5
    os.kill(held.pid, sent)
    held.wait(240)
    assert _await(lambda: not _of_home(place), 240), _of_home(place)
    assert announced_url(prefect_home) is None
    assert not (prefect_home / "profiles.toml").exists()


def test_when_one_service_ends_so_do_the_others(place: Place, held: "subprocess.Popen[str]") -> None:
    assert _await(lambda: announced_url(place.home / "prefect"), 240)
    (server,) = [p for p in _of_home(place) if _is_server(p)]
    server.kill()
    assert held.wait(240) != 0
    assert _await(lambda: not _of_home(place), 240)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_deployments_run_schedules_fire_and_a_failure_is_one(
    place: Place, tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    log = (tmp_path / "up.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.up"],
        env=place.env | ports_of_up() | {"PREFECT_WORKER_QUERY_SECONDS": "2"},
        stdout=log,
        stderr=log,
        preexec_fn=_obey_ctrl_c,
    )
    prefect_home = place.home / "prefect"
    assert _await(lambda: "In another shell" in Path(log.name).read_text() or process.poll() is not None)
    url = announced_url(prefect_home)
    assert url, Path(log.name).read_text()[-3000:]

    def prefect(*arguments: str) -> None:
        tool = [str(Path(sys.executable).with_name("prefect")), *arguments]
        done = subprocess.run(tool, env=place.env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:

        def states() -> list[tuple[str, bool]]:
            """Final states of the flow runs so far, and whether a schedule made each."""
            runs = client.read_flow_runs()
            return [(run.state_type.value, run.auto_scheduled) for run in runs if run.state and run.state.is_final()]

        prefect("deployment", "run", "train/toy")
        assert _await(lambda: states() == [("COMPLETED", False)]), states()
        heartbeats = _count(prefect_home, "select count(*) from events where event = 'prefect.flow-run.heartbeat'")
        assert heartbeats
        prefect("deployment", "run", "monitor/toy", "--param", 'checks=["drift"]')
        assert _await(lambda: states() == [("COMPLETED", False)] * 2), states()
        places = f"input={place.data / 'toy.csv'}", f"output={tmp_path / 'scores.csv'}"
        prefect("deployment", "run", "predict/toy", "--param", places[0], "--param", places[1])
        assert _await(lambda: states() == [("COMPLETED", False)] * 3), states()
        assert (tmp_path / "scores.csv").exists()
        prefect("deployment", "run", "train/toy", "--param", "model=nosuch")
        assert _await(lambda: ("FAILED", False) in states()), states()
        joined = place.gauntlet("run", "toy")
        assert joined.code == 0, joined.printed[-2000:]
        assert joined.json is not None
        assert client.read_flow_run(UUID(joined.json["prefect_flow_run_id"])).state_type == StateType.COMPLETED
        prefect("deployment", "schedule", "create", "train/toy", "--interval", "10")
        assert _await(lambda: ("COMPLETED", True) in states()), states()
    process.kill()
    process.wait()
    assert _await(lambda: not _of_home(place), 240), _of_home(place)
    assert announced_url(prefect_home) is None
    proof(
        "make up: deployments train, watch, predict, one fails, a schedule fires, a run joins; kill -9 leaves nothing",
        5,
        "seen",
    )


def _count(prefect_home: Path, query: str) -> int:
    with sqlite3.connect(prefect_home / "prefect.db") as database:
        return int(database.execute(query).fetchone()[0])
