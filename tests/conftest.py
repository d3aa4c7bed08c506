"""One temporary home for the whole test session, set before any tool is imported."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacks.home import environment

HOME = Path(tempfile.mkdtemp(prefix="gauntlet-test-"))
for _name in [n for n in os.environ if n.startswith(("GAUNTLET_", "PREFECT_", "ZENML_", "MLFLOW_", "BENTOML_"))]:
    if _name not in ("GAUNTLET_REQUIRE_SERVICES", "GAUNTLET_DATA"):
        del os.environ[_name]
os.environ.update(environment(HOME))
os.environ["GAUNTLET_SECRET"] = "test-secret"
(HOME / "mlflow").mkdir()


@pytest.fixture(scope="session")
def home() -> Path:
    """The session's GAUNTLET_HOME; this process's tools already use it."""
    return HOME


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that says what is missing."""
    folder = Path(os.environ.get("GAUNTLET_DATA") or Path(__file__).parents[2] / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name}: set GAUNTLET_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _remove_home() -> Iterator[None]:
    yield
    shutil.rmtree(HOME, ignore_errors=True)
