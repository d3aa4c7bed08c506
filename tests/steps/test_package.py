import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steps.package
from bentos.release import Release
from models.errors import WorkError
from stacks import registry, runs
from stacks.home import clone_dir
from stacks.ledger import open_ledger
from steps.apart import apart
from steps.build import bento_file, build_bento, read_pins, requirements, unpack
from steps.deploy import faults
from steps.package import Package, package_release
from steps.promote import decide, repair
from steps.restore import is_lost, restore
from steps.serve import Latency, compare, serving
from tests.bentos.samples import write
from tests.steps.arena import config_of, evaluation_of

HEAVY = {"zenml", "prefect", "mlflow", "evidently", "great-expectations", "hyperopt", "shap", "xgboost", "pyarrow"}


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write(tmp_path_factory.mktemp("wine") / "release", "wine", "logistic_regression")


@pytest.fixture(scope="module")
def bento(wine: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"release_digest": wine.digest, "metric": "accuracy=0.91"}
    return build_bento(wine.directory, "wine", 7, labels, tmp_path_factory.mktemp("bento"))


def test_requirements_are_slim_pins_of_our_lock() -> None:
    pins = read_pins(clone_dir() / "requirements.lock")
    lines = requirements("random_forest")
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][^\s;]*", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"scikit-learn", "skops", "pandas", "fastapi"} <= names
    assert not names & (HEAVY | {"bentoml"})
    assert {line for line in lines if line.partition("==")[2] != pins[line.partition("==")[0]]} == set()


def test_only_xgboost_brings_xgboost_and_only_its_cpu_build() -> None:
    pins = read_pins(clone_dir() / "requirements.lock")
    more = set(requirements("xgboost")) - set(requirements("logistic_regression"))
    assert more == {f"xgboost-cpu=={pins['xgboost']}"}


def test_pins_are_read_by_their_markers(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# a comment\n"
        "Some_Name==1.0 ; python_full_version < '3.0' \\\n    --hash=sha256:00\n"
        "Some_Name==2.0 ; python_full_version >= '3.0' and sys_platform == 'linux' \\\n    --hash=sha256:00\n"
        "mac-only==1.0 ; sys_platform == 'darwin'\n"
        "plain==3.0\n"
    )
    assert read_pins(lock) == {"some-name": "2.0", "plain": "3.0"}
    with pytest.raises(WorkError, match="no pin of"):
        requirements("xgboost", lock)
    with pytest.raises(WorkError, match="cannot be read"):
        read_pins(tmp_path / "absent.lock")


def test_a_bento_holds_the_service_the_release_and_nothing_else(bento: Path, wine: Release, tmp_path: Path) -> None:
    assert bento.name == bento_file("wine", 7)
    unpacked = unpack(bento, tmp_path)
    files = {path.relative_to(unpacked / "src").as_posix() for path in (unpacked / "src").rglob("*") if path.is_file()}
    assert {name.partition("/")[0] for name in files} == {"bentos", "models", "stacks", "release", "bentofile.yaml"}
    stacks = {name.removeprefix("stacks/") for name in files if name.startswith("stacks/")}
    stacks = {name for name in stacks if not name.startswith("migrations/")}
    data = {"alerts.py", "audit.py", "findings.py", "keys.py", "ledger.py", "lifecycle.py"}
    carried = {"served.py", "cloud.yaml", "local.yaml"}
    assert stacks == {"__init__.py", "home.py", "logs.py"} | data | carried
    assert {name for name in files if name.startswith("models/")} == {
        "models/__init__.py",
        "models/config.py",
        "models/errors.py",
        "models/judgement.py",
        "models/monitoring.py",
        "models/section.py",
    }
    assert Release.open(unpacked / "src/release").digest == wine.digest
    info = (unpacked / "bento.yaml").read_text()
    assert f"release_digest: {wine.digest}" in info
    assert "metric: accuracy=0.91" in info
    assert "version: '000007'" in info


def test_a_bento_s_code_makes_the_tables_of_a_new_database(bento: Path, tmp_path: Path) -> None:
    script = """
import asyncio, sys, time
from bentos.outcomes import OutcomeItem, record
from bentos.prediction_log import PredictionLog, Record, new_id

async def log(url, now):
    prediction = Record(new_id(now), now, "wine", 7, "champion", None, None, None, b'{"inputs": {}, "answer": {}}')
    await PredictionLog(url).write(prediction)
    return prediction.id

identity = asyncio.run(log(sys.argv[1], time.time()))
report = record(sys.argv[1], [OutcomeItem(prediction_id=identity, outcome="a")], time.time())
print(report.recorded, sys.modules["bentos"].__file__)
"""
    source = unpack(bento, tmp_path / "bento") / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "GAUNTLET_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-c", script, f"sqlite:///{tmp_path / 'new.db'}"]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", str(source / "bentos/__init__.py")]


def test_a_bento_names_no_index_and_no_place_of_this_machine(bento: Path, tmp_path: Path) -> None:
    """Trap: BentoML's own locking writes an index address."""
    unpacked = unpack(bento, tmp_path)
    needed = (unpacked / "env/python/requirements.txt").read_text()
    assert re.findall(r"(?m)^bentoml==", needed) == ["bentoml=="]
    assert not (unpacked / "env/python/requirements.lock.txt").exists()
    places = [str(clone_dir()), sys.prefix, str(Path.home()) + "/", "gauntlet-build-"]
    for path in unpacked.rglob("*"):
        if path.is_file() and "release" not in path.parts:
            text = path.read_text(errors="replace")
            assert "index-url" not in text
            assert not [place for place in places if place in text], path.name


def test_a_place_apart_shares_nothing_with_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trap: each `bentoml serve` empties the prometheus folder of its home, the user's running server's too."""
    for name in (
        "BENTOML_PORT",
        "BENTOML_CONFIG",
        "PROMETHEUS_MULTIPROC_DIR",
        "PYTHONPATH",
        "GAUNTLET_HOME",
        "GAUNTLET_DATABASE",
    ):
        monkeypatch.setenv(name, "elsewhere")
    environment = apart(tmp_path / "home")
    assert environment["BENTOML_HOME"] == str(tmp_path / "home")
    assert "elsewhere" not in environment.values()


def test_a_damaged_release_is_not_built(wine: Release, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(wine.directory, tmp_path / "copy"))
    (copy / "golden.json").write_text("[]")
    with pytest.raises(WorkError, match=r"golden\.json"):
        build_bento(copy, "wine", 1, {})


def test_what_bentoml_says_against_a_build_is_passed_on(wine: Release, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="could not build"):
        build_bento(wine.directory, "No Such Name!", 1, {}, tmp_path)


def test_a_bento_that_answers_otherwise_fails_its_smoke_test(bento: Path, wine: Release, tmp_path: Path) -> None:
    other = write(tmp_path / "other", "wine", "random_forest")
    forged = Release.open(wine.directory)
    forged.__dict__["golden"] = other.golden  # same rows, a forest's answers
    unpack(bento, tmp_path / "bentos/wine/000007")
    with serving("wine:000007", tmp_path / "bentos") as endpoint:
        compare(endpoint, wine, 7)
        for release, version, said in ((wine, 8, "another"), (other, 7, "another"), (forged, 7, "differently")):
            with pytest.raises(WorkError, match=said):
                compare(endpoint, release, version)


def test_a_release_is_packaged_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wine: Release) -> None:
    run = runs.start_run("wine")
    package = package_release(wine.directory, run, "accuracy")
    assert package == Package.model_validate_json(package.model_dump_json())
    assert package.smoke == "passed"
    assert package.tag == f"wine:{package.version:06d}"
    assert 0 < package.p50_ms <= package.p95_ms
    stored = registry.fetch_file("wine", package.version, f"bento/{bento_file('wine', package.version)}", tmp_path)
    assert package.size_bytes == sum(path.stat().st_size for path in wine.directory.rglob("*") if path.is_file())
    assert not (home / "bentoml/bentos/wine").exists()  # not visible before it is promoted

    monkeypatch.setattr(steps.package, "build_bento", _unexpected)
    assert package_release(wine.directory, runs.start_run("wine"), "accuracy") == package

    artifact = next((home / "mlflow/artifacts").rglob(stored.name))
    artifact.write_bytes(b"other")
    with pytest.raises(AssertionError, match="built again"):
        package_release(wine.directory, run, "accuracy")
    artifact.unlink()
    with pytest.raises(AssertionError, match="built again"):
        package_release(wine.directory, run, "accuracy")


def test_a_package_that_did_not_pass_says_why_and_is_tried_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = write(tmp_path / "r", "wine", "logistic_regression", trials=99)
    run = runs.start_run("wine")

    def fail(*_: Any) -> None:
        raise WorkError("the port never answered")

    monkeypatch.setattr(steps.package, "smoke_test", fail)
    failed = package_release(release.directory, run, "accuracy")
    assert (failed.smoke, failed.p50_ms) == ("the port never answered", 0)
    monkeypatch.setattr(steps.package, "smoke_test", lambda *_: Latency(1.0, 2.0))
    again = package_release(release.directory, run, "accuracy")
    assert (again.version, again.smoke, again.p95_ms) == (failed.version, "passed", 2.0)


def test_a_champion_deleted_from_mlflow_is_restored_from_its_bento(home: Path, tmp_path: Path) -> None:
    release = write(tmp_path / "r", "heart_disease", "logistic_regression")
    model = release.schema.model
    package = package_release(release.directory, runs.start_run(model), "accuracy")
    decide(config_of(model), evaluation_of(model, release_digest=release.digest), package)
    repair(model)
    assert not is_lost(model, package.version)
    registry.delete_version(model, package.version)
    assert is_lost(model, package.version)
    assert is_lost(model, None), "there is no other to go back to"
    with pytest.raises(WorkError, match=rf"gauntlet rollback {model} --to {package.version}` registers it again"):
        repair(model)
    entry = restore(model, why="somebody tidied up")
    standing = open_ledger().standing(model)
    assert entry.version == standing.champion != package.version
    assert standing.states[package.version] == "retired"
    assert registry.version(model, standing.champion).digest == release.digest
    assert registry.aliases(model)["champion"] == standing.champion
    assert faults(model, standing.champion) == []
    assert repair(model) == ()
    assert not is_lost(model, standing.champion)


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["xgboost", "random_forest"])
def test_a_bento_s_own_environment_is_small_and_serves(
    family: Any, tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    """A Bento's requirements in an empty environment: under 600 MB, and golden inputs answered from there."""
    release = write(tmp_path / "release", "heart_disease", family)
    bento = build_bento(release.directory, "heart_disease", 3, {}, tmp_path)
    unpacked = unpack(bento, tmp_path / "bentos/heart_disease/000003")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    install = ["pip", "install", "--quiet", "--python", str(venv / "bin/python")]
    needed = str(unpacked / "env/python/requirements.txt")
    subprocess.run([str(Path(sys.prefix) / "bin/uv"), *install, "-r", needed], check=True, timeout=800)
    size = sum(path.lstat().st_size for path in (venv / "lib").rglob("*") if path.is_file())
    assert size < 600e6
    listed = subprocess.run(
        [str(Path(sys.prefix) / "bin/uv"), "pip", "list", "--python", str(venv / "bin/python")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not {line.split()[0] for line in listed.splitlines()[2:]} & HEAVY
    with serving("heart_disease:000003", tmp_path / "bentos", venv / "bin/python") as endpoint:
        answers = endpoint.predict_batch([golden.inputs for golden in release.golden])
    for answer, golden in zip(answers, release.golden, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(golden.probabilities, abs=1e-6)
    line = f"A Bento's requirements ({family}) in an empty environment: under 600 MB, golden inputs answered from there"
    proof(line, f"{len(answers)} inputs", f"{size / 1e6:.0f} MB, all equal to 1e-6")


def _unexpected(*_: Any) -> None:
    raise AssertionError("built again")
