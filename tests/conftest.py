"""One temporary home for the whole test session, set before any tool is imported."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stacks.home import environment
from tests.databases import postgres_schema

# A worker of pytest-xdist has no main file, and ZenML looks for sources beside it.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = str(Path(pytest.__file__).with_name("__main__.py"))
HOME = Path(tempfile.mkdtemp(prefix="gauntlet-test-"))
for _name in [n for n in os.environ if n.startswith(("GAUNTLET_", "PREFECT_", "ZENML_", "MLFLOW_", "BENTOML_"))]:
    if _name not in ("GAUNTLET_REQUIRE_SERVICES", "GAUNTLET_DATA") and not _name.startswith("GAUNTLET_TEST_"):
        del os.environ[_name]
os.environ.update(environment(HOME))
os.environ["GAUNTLET_SECRET"] = "test-secret"
os.environ["GAUNTLET_ACCESS_LOG"] = "off"
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(HOME / "hypothesis")
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


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
    else:
        yield from postgres_schema()


PROOFS: list[tuple[str, str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proof", default=None, help="Write what the prove tests counted to this Markdown file.")


@pytest.fixture(scope="session")
def proof() -> Callable[[str, object, str], None]:
    """Record one line of docs/proof.md: what an issue promises, how often it was tried, what came out."""
    return lambda line, count, result: PROOFS.append((line, str(count), result))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that may take longest, by their tests' own time limits: else one worker ends much later."""
    longest: dict[Path, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0.0), limit.args[0] if limit else 0.0)
    items.sort(key=lambda item: -longest[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker process of pytest-xdist proved."""
    PROOFS.extend(tuple(line) for line in getattr(node, "workeroutput", {}).get("proofs", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["proofs"] = PROOFS
        return
    path = session.config.getoption("--proof")
    if not path:
        return
    rows = [f"| {line} | {count} | {result} |" for line, count, result in sorted(PROOFS)]
    head = [
        "# Proof",
        "",
        f"Written by `make prove`, {datetime.now(UTC):%Y-%m-%d}: what is promised, how often tried, what came out.",
        "",
        "| line | count | result |",
        "|---|---|---|",
    ]
    Path(path).write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
