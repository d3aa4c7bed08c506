"""What must never be committed, and what every room owes its reader."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "stacks", "bentos", "steps", "flows", "tests", "benchmarks", "docs")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_package_index_or_a_home_of_someones_machine(tracked: list[Path]) -> None:
    bad = re.compile(r"py" + r"pi\.org|python" + r"hosted\.org|/ro" + r"ot/|/ho" + r"me/[a-z]+/|/Us" + r"ers/[a-z]+/")
    found = [path.name for path in tracked if bad.search(path.read_text(encoding="utf-8", errors="ignore"))]
    assert found == []


def test_no_file_was_merged_by_halves(tracked: list[Path]) -> None:
    mark = re.compile(r"^(<{7}|>{7}) ", re.M)
    assert [path.name for path in tracked if mark.search(path.read_text(encoding="utf-8", errors="ignore"))] == []


def test_no_binary_state_and_nothing_large(tracked: list[Path]) -> None:
    state = (".pkl", ".pickle", ".joblib", ".db", ".sqlite", ".skops", ".ubj", ".csv", ".parquet")
    assert [path.name for path in tracked if path.suffix in state] == []
    assert [path.name for path in tracked if path.stat().st_size > 2**20] == []


def test_lock_has_hashes_and_covers_every_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^([a-z0-9._-]+)(?:\[.*?\])?==", lock, re.M)
    entries = re.split(r"\n(?=[a-z0-9])", lock.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^    "([A-Za-z0-9-]+)(?:\[.*?\])?[><=]', project, re.M)
    assert len(wanted) > 30
    assert sorted(set(wanted) - set(pinned)) == []


def test_the_orchestrator_is_kept_from_every_other_module_of_its_room() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = next(one["forbidden_modules"] for one in contracts if one["name"].startswith("The orchestrator"))
    others = {f"stacks.{path.stem}" for path in (ROOT / "stacks").glob("*.py")} - {"stacks.__init__"}
    assert set(forbidden) == others | {"models"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_top_folder_has_a_short_readme(room: str) -> None:
    text = (ROOT / room / "README.md").read_text()
    assert 4 <= len(text.splitlines()) <= 25
    for word in ("Purpose", "Entry points", "Invariants", "Pitfalls"):
        assert word in text


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_version_trap_has_its_test() -> None:
    named = re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", (ROOT / "docs" / "traps.md").read_text())
    assert len(named) > 30
    missing = [test for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []
