"""What the active stack carries reaches the process, and is gone again on another stack."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from zenml.client import Client

from models.errors import ConfigError
from stacks import active, stack_file
from stacks.active import leave_stack, shell_environment, use_stack
from stacks.served import served_database, use_served_stack
from stacks.stack_file import REFERENCE, apply, ensure_active, load_stack
from tests.stacks.test_stack_file import CLOUD

ROOT = Path(__file__).parents[2]
CARRYING = {
    "orchestrator": {"flavor": "prefect"},
    "artifact_store": {"flavor": "local"},
    "environment": {"MLFLOW_TRACKING_URI": "https://mlflow.example", "GAUNTLET_DASK": "tls://dask.example"},
    "secrets": {"carried": {"GAUNTLET_DATABASE": "${CARRIED_DATABASE}"}},
}


@pytest.fixture(autouse=True)
def _active_stack_stays(home: Path) -> Iterator[None]:
    ensure_active()
    before = Client().active_stack_model.id
    yield
    leave_stack()
    Client().activate_stack(before)


@pytest.fixture
def carrying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(stack_file, "stacks_dir", lambda: tmp_path)
    monkeypatch.setenv("CARRIED_DATABASE", "postgresql://u:p@db.example/carried")
    (tmp_path / "carrying.yaml").write_text(yaml.safe_dump(CARRYING))
    apply("carrying")
    return "carrying"


def test_setting_a_stack_switches_addresses_and_keys_and_back(carrying: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("GAUNTLET_DASK", raising=False)
    monkeypatch.delenv("GAUNTLET_DATABASE", raising=False)
    use_stack()
    assert os.environ["MLFLOW_TRACKING_URI"] == local
    Client().activate_stack(carrying)
    for _ in range(2):
        use_stack()
        assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example"
        assert os.environ["GAUNTLET_DASK"] == "tls://dask.example"
        assert os.environ["GAUNTLET_DATABASE"] == "postgresql://u:p@db.example/carried"
        assert shell_environment()["MLFLOW_TRACKING_URI"] == local
        assert "GAUNTLET_DASK" not in shell_environment()
    Client().activate_stack("local")
    use_stack()
    assert os.environ["MLFLOW_TRACKING_URI"] == local
    assert not {"GAUNTLET_DASK", "GAUNTLET_DATABASE"} & set(os.environ)


def _child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_stack_that_carries_nothing_is_known_without_importing_zenml(carrying: str) -> None:
    """Trap: ZenML takes seconds to import; `gauntlet history` has no need of it on the local stack."""
    code = (
        "import os, sys; from stacks.active import use_stack; use_stack(); "
        "print('zenml' in sys.modules, os.environ.get('GAUNTLET_DATABASE'))"
    )
    assert _child(code) == "False None"
    Client().activate_stack(carrying)
    assert _child(code) == "True postgresql://u:p@db.example/carried"


def test_what_zenml_s_files_do_not_tell_is_asked_of_zenml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert active._is_plain()
    monkeypatch.setenv("ZENML_STORE_URL", "mysql://me:secret@db.example/zenml")
    assert not active._is_plain()
    monkeypatch.delenv("ZENML_STORE_URL")
    (tmp_path / ".zen").mkdir()
    assert not active._is_plain()
    (tmp_path / ".zen").rmdir()
    monkeypatch.setenv("ZENML_CONFIG_PATH", str(tmp_path))
    assert active._is_plain(), "ZenML was not used yet"
    (tmp_path / "config.yaml").write_text("store: {type: rest, url: https://zenml.example}\nactive_stack_id: a-b\n")
    assert not active._is_plain()
    with closing(sqlite3.connect(tmp_path / "zenml.db")) as store:
        store.execute("CREATE TABLE stack (id TEXT)")
    (tmp_path / "config.yaml").write_text(f"store: {{url: 'sqlite:///{tmp_path}/zenml.db'}}\nactive_stack_id: a-b\n")
    assert not active._is_plain(), "another schema"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A shell in which the environment file of the cloud stack was read."""
    for name in ("GAUNTLET_DATABASE", "GAUNTLET_SECRET", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        # Set first, so that it is taken away again after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GAUNTLET_STACK", "cloud")
    return monkeypatch


def test_a_service_takes_its_database_and_its_bucket_from_the_stack_file(shell: pytest.MonkeyPatch) -> None:
    tracking = os.environ["MLFLOW_TRACKING_URI"]
    assert served_database(os.environ) == CLOUD["GAUNTLET_DATABASE_URL"]
    for name in CLOUD:
        if "PREFECT" in name or "MLFLOW" in name or "DASK" in name:
            shell.delenv(name)
    use_served_stack()
    assert os.environ["GAUNTLET_DATABASE"] == CLOUD["GAUNTLET_DATABASE_URL"]
    assert os.environ["AWS_ENDPOINT_URL"] == CLOUD["GAUNTLET_S3_ENDPOINT"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == CLOUD["GAUNTLET_S3_SECRET"]
    assert os.environ["MLFLOW_TRACKING_URI"] == tracking
    assert "PREFECT_API_AUTH_STRING" not in os.environ


def test_the_service_s_own_database_comes_first(shell: pytest.MonkeyPatch) -> None:
    shell.setenv("GAUNTLET_DATABASE", "postgresql://mine.example/x")
    shell.delenv("GAUNTLET_DATABASE_URL")
    assert served_database(os.environ) == "postgresql://mine.example/x"
    use_served_stack()
    assert os.environ["GAUNTLET_DATABASE"] == "postgresql://mine.example/x"


def test_a_service_says_what_its_stack_lacks(shell: pytest.MonkeyPatch) -> None:
    shell.delenv("GAUNTLET_DATABASE_URL")
    shell.delenv("GAUNTLET_S3_SECRET")
    with pytest.raises(ConfigError, match="GAUNTLET_DATABASE_URL, GAUNTLET_S3_SECRET") as refused:
        use_served_stack()
    assert "GAUNTLET_STACK=cloud" in str(refused.value) and "key-id-value" not in str(refused.value)
    shell.setenv("GAUNTLET_STACK", "clud")
    with pytest.raises(ConfigError, match="cloud"):
        use_served_stack()


def test_knowing_the_stack_costs_the_service_no_tool() -> None:
    code = (
        "import sys; import stacks.served; "
        "print([name for name in ('zenml', 'prefect', 'mlflow', 'pandas') if name in sys.modules])"
    )
    assert _child(code) == "[]"


def test_the_example_names_every_variable_of_the_stack_encrypted_and_without_a_value() -> None:
    lines = (ROOT / "stacks/cloud.env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    used = set(REFERENCE.findall((ROOT / "stacks/cloud.yaml").read_text()))
    assert {name for name in example if not name.startswith("ZENML_")} == used
    assert load_stack("cloud").environment.keys() & used == set(), "a name of its own: local must not see it"
    for name, value in example.items():
        if "://" in value and name != "GAUNTLET_BUCKET":
            assert re.search(r"^(https|tls)://|ssl=true|sslmode=verify-full", value), name
        if re.search(r"//\w+:", value):
            assert ":PASSWORD@" in value, name
        if name.endswith(("PASSWORD", "SECRET", "KEY", "AUTH")):
            assert value.rpartition(":")[2] in ("PASSWORD", "SECRET", "KEY"), name
