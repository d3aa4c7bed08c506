"""A server announced in a Prefect home: found while it is there, forgotten when its process is gone."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stacks.orchestrator.announcement import AlreadyAnnounced, announce, announced_url, claimed, withdraw_dead
from stacks.orchestrator.server import configured_url

URL = "http://127.0.0.1:4999/api"
OWN = 'active = "mine"\n\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "ERROR"\n\n[profiles.other]\nPREFECT_API_URL = "http://x/api"\n'
BUILT_IN = 'active = "local"\n\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "ERROR"\n'


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", [None, OWN, BUILT_IN], ids=["no profiles", "own profiles", "a built-in profile"])
def test_announced_and_withdrawn(tmp_path: Path, text: str | None) -> None:
    profiles = tmp_path / "profiles.toml"
    if text is not None:
        profiles.write_text(text)
    with claimed(tmp_path):
        assert announce(tmp_path, URL)
        assert configured_url(tmp_path) == URL
    assert configured_url(tmp_path) is None
    assert announced_url(tmp_path) is None
    if text is None:
        assert not profiles.exists()
    elif text == OWN:
        assert profiles.read_text() == OWN


def test_what_the_user_set_meanwhile_stays(tmp_path: Path) -> None:
    with claimed(tmp_path):
        announce(tmp_path, URL)
        with (tmp_path / "profiles.toml").open("a") as file:
            file.write('PREFECT_LOGGING_LEVEL = "DEBUG"\n')
    assert "DEBUG" in (tmp_path / "profiles.toml").read_text()
    assert configured_url(tmp_path) is None


def test_the_users_own_server_is_left_alone(tmp_path: Path) -> None:
    text = OWN.replace('"mine"', '"other"', 1)
    (tmp_path / "profiles.toml").write_text(text)
    with claimed(tmp_path):
        assert not announce(tmp_path, URL)
    assert (tmp_path / "profiles.toml").read_text() == text


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path):
        announce(tmp_path, URL)
        with pytest.raises(AlreadyAnnounced, match="4999"), claimed(tmp_path):
            pass
        withdraw_dead(tmp_path)
        assert configured_url(tmp_path) == URL


def test_the_announcement_of_a_killed_process_is_taken_back(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import pathlib, time
        from stacks.orchestrator.announcement import announce, claimed
        home = pathlib.Path({str(tmp_path)!r})
        with claimed(home):
            announce(home, {URL!r})
            print("there", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    assert configured_url(tmp_path) == URL
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    withdraw_dead(tmp_path)
    assert configured_url(tmp_path) is None
