import os
import subprocess
import threading
from pathlib import Path

import pytest

from stacks.home import activate_script, environment, secret_key


def _exports(script: str, before: dict[str, str], names: list[str]) -> dict[str, str]:
    shown = subprocess.run(
        ["bash", "-uec", script + "\n" + "\n".join(f'echo "{n}=${{{n}-}}"' for n in names)],
        env={"PATH": os.environ["PATH"], **before},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in shown.stdout.splitlines())


def test_activate_points_every_tool_into_the_clone(tmp_path: Path) -> None:
    names = list(environment(tmp_path))
    assert _exports(activate_script(tmp_path), {}, names) == environment(tmp_path / ".gauntlet")


def test_activate_leaves_what_the_user_set(tmp_path: Path) -> None:
    shown = _exports(activate_script(tmp_path), {"PREFECT_HOME": "/mine"}, ["PREFECT_HOME", "BENTOML_HOME"])
    assert shown == {"PREFECT_HOME": "/mine", "BENTOML_HOME": str(tmp_path / ".gauntlet" / "bentoml")}


def test_the_other_homes_lie_in_the_users_home(tmp_path: Path) -> None:
    shown = _exports(activate_script(tmp_path), {"GAUNTLET_HOME": str(tmp_path / "mine")}, ["ZENML_CONFIG_PATH"])
    assert shown == {"ZENML_CONFIG_PATH": str(tmp_path / "mine" / "zenml")}


def test_activating_a_second_clone_replaces_the_first(tmp_path: Path) -> None:
    both = activate_script(tmp_path / "a") + activate_script(tmp_path / "b")
    assert _exports(both, {}, ["GAUNTLET_HOME"]) == {"GAUNTLET_HOME": str(tmp_path / "b" / ".gauntlet")}


def test_secret_is_made_once_even_by_many_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAUNTLET_SECRET")
    monkeypatch.setenv("GAUNTLET_HOME", str(tmp_path))
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(secret_key())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    assert (tmp_path / "secret.key").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]
