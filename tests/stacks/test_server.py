"""One Prefect server a home: shared while somebody uses it, gone with the last one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from stacks.orchestrator import server
from stacks.orchestrator.server import (
    ServerError,
    configured_url,
    ensure_server,
    lasting_address,
    public_url,
    require_answer,
    start_server,
)
from stacks.orchestrator.tether import tethered
from tests.ports import free_port

USER = """
import sys, time
from pathlib import Path
from stacks.orchestrator.server import ensure_server
print(ensure_server(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def record(home: Path) -> dict[str, object]:
    return dict(json.loads((home / "gauntlet-server.json").read_text()))


def settings_of(url: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{url}/admin/settings", timeout=120) as answer:
        return dict(json.load(answer))


@pytest.fixture(scope="module")
def fresh_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect") / "home"


@pytest.fixture
def user(fresh_home: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", USER, str(fresh_home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_users_that_start_together_share_one_and_it_ends_with_the_last(
    fresh_home: Path, user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    users = [user() for _ in range(3)]
    urls = {process.stdout.readline().strip() for process in users if process.stdout}
    assert len(urls) == 1
    url = urls.pop()
    served = settings_of(url)
    assert Path(str(served["home"])) == fresh_home
    server = psutil.Process(int(str(record(fresh_home)["pid"])))
    others = [p for p in psutil.process_iter(["cmdline"]) if str(fresh_home) in (p.info["cmdline"] or [])]
    assert sum("server.py" in " ".join(p.info["cmdline"]) for p in others) == 1

    starter = next(process for process in users if process.pid == server.ppid())
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    rest = [process for process in users if process is not starter]
    late = user()
    assert late.stdout is not None and late.stdout.readline().strip() == url, "it stays for the others"
    for process in [*rest, late]:
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    assert not (fresh_home / "gauntlet-server.json").exists()


def test_the_next_one_gets_a_new_server_after_a_killed_one(
    fresh_home: Path, user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    first = user()
    assert first.stdout is not None and first.stdout.readline()
    os.kill(int(str(record(fresh_home)["pid"])), signal.SIGKILL)
    second = user()
    assert second.stdout is not None
    assert settings_of(second.stdout.readline().strip())["home"] == str(fresh_home)


def test_a_process_that_ends_in_order_sees_its_server_off(
    fresh_home: Path, user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = user()
    assert process.stdin is not None and process.stdout is not None and process.stdout.readline()
    server = psutil.Process(int(str(record(fresh_home)["pid"])))
    process.stdin.close()
    assert process.wait(240) == 0
    wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_a_server_of_the_user_on_the_same_home_is_taken(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    monkeypatch.setattr(server, "ASK_SECONDS", 120)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", port)
    command = [str(Path(sys.executable).parent / "prefect"), "server", "start", "--port", port]
    with tethered(
        command,
        env={**os.environ, "PREFECT_HOME": str(fresh_home), "PREFECT_SERVER_UI_ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/health"))
        url = ensure_server(fresh_home)
        assert url == f"http://127.0.0.1:{port}/api" == f"{public_url(fresh_home, url)}/api"
        assert not (fresh_home / "gauntlet-server.json").exists()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_what_the_user_configured_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert configured_url(tmp_path) is None
    profiles = 'active = "team"\n[profiles.team]\nPREFECT_API_URL = "https://prefect.example/api"\n[profiles.other]\n'
    (tmp_path / "profiles.toml").write_text(profiles)
    assert ensure_server(tmp_path) == "https://prefect.example/api"
    assert public_url(tmp_path, "https://prefect.example/api") == "https://prefect.example"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert configured_url(tmp_path) is None
    monkeypatch.setenv("PREFECT_API_URL", "http://10.0.0.1:4200/api")
    assert start_server(tmp_path).wait() == "http://10.0.0.1:4200/api"


def test_a_run_s_server_is_recognised_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    own = "http://127.0.0.1:4711/api"
    assert lasting_address(tmp_path, "https://me:hunter2@prefect.example/api/") == "https://prefect.example/api"
    # Somebody's on this machine, named by the environment or by Prefect's settings of this process alone.
    assert lasting_address(tmp_path, own) == own
    # The home's own server is on another port each time.
    assert lasting_address(tmp_path, None) == str(tmp_path)
    (tmp_path / "gauntlet-server.json").write_text(json.dumps({"url": own, "pid": 1, "lease_port": 1}))
    assert lasting_address(tmp_path, own) == str(tmp_path)


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////no/such/folder/prefect.db")
    with pytest.raises(ServerError, match=r"(?s)ended with code [^0].*unable to open database file"):
        ensure_server(tmp_path / "home")


class _Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_configured_api_that_does_not_answer_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_answer(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_API_URL", f"http://me:hunter2@127.0.0.1:{closed.getsockname()[1]}/api")
        with pytest.raises(ServerError, match=r"^PREFECT_API_URL=http://127.* does not answer \(.*unset") as refused:
            require_answer(tmp_path)
        assert "hunter2" not in str(refused.value)
        closed.listen()
        with pytest.raises(ServerError, match=r"does not answer \(.*[Tt]ime"):
            require_answer(tmp_path, seconds=0.5)


def test_any_answer_of_a_configured_api_will_do_but_a_gateway_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), _Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for code in (200, 401, 404, 500):
            monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/{code}")
            require_answer(tmp_path)
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/503")
        with pytest.raises(ServerError, match="HTTP 503"):
            require_answer(tmp_path)
        server.shutdown()
