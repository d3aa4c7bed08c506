import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from models.errors import WorkError
from stacks import registry, runs
from stacks.home import environment
from tests.ports import free_port

SCRIPT = """
from pathlib import Path
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

class Says(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        self.said = (Path(context.artifacts["release"]) / "said.txt").read_text()

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None):
        return pd.DataFrame({"prediction": [f"{self.said}{row}" for row in model_input["a"]]})

set_model(Says())
"""

STORE = """
import sys
from pathlib import Path
from stacks import registry
registry.initialise()
print(len(registry.client().search_experiments()), len(registry.versions("none")))
"""


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> registry.Loader:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

    script = tmp_path_factory.mktemp("loader") / "says.py"
    script.write_text(SCRIPT)
    signature = ModelSignature(
        Schema([ColSpec(AnyType(), "a"), ColSpec(AnyType(), "b", required=False)]),
        Schema([ColSpec(DataType.string, "prediction")]),
    )
    return registry.Loader(script, (), signature, pd.DataFrame([{"a": 1, "b": None}]), ("mlflow==3.17.2",))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "anything"
    (folder / "reference").mkdir(parents=True)
    (folder / "said.txt").write_text("row ")
    (folder / "reference" / "sample.txt").write_text("x")
    return folder


def put(model: str, release: Path, digest: str, loader: registry.Loader) -> int:
    run_id = runs.start_run(model)
    return registry.register(
        model, release, digest=digest, run_id=run_id, loader=loader, tags=lambda _: {"why": "test"}
    )


def test_numbers_rise_and_a_known_digest_keeps_its_number(release: Path, loader: registry.Loader) -> None:
    assert [put("numbers", release, digest, loader) for digest in ("a", "b", "a", "b", "c")] == [1, 2, 1, 2, 3]
    assert [(v.number, v.digest, v.tags["why"]) for v in registry.versions("numbers")] == [
        (1, "a", "test"),
        (2, "b", "test"),
        (3, "c", "test"),
    ]
    assert registry.versions("numbers")[0].created == pytest.approx(time.time(), abs=120)


def test_a_release_comes_back_whole_and_is_downloaded_once(release: Path, loader: registry.Loader) -> None:
    number = put("whole", release, "a", loader)
    folder = registry.release_dir("whole", number)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"said.txt": "row ", "reference/sample.txt": "x"}
    (folder / "kept").touch()
    assert (registry.release_dir("whole", number) / "kept").exists()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_mlflow_loads_the_champion_by_its_alias(release: Path, loader: registry.Loader) -> None:
    import mlflow.pyfunc

    registry.mirror("loads", champion=put("loads", release, "a", loader), previous=None, challenger=None)
    model = mlflow.pyfunc.load_model("models:/loads@champion")
    answers = model.predict(pd.DataFrame([{"a": 1}, {"a": "two"}]))
    assert answers["prediction"].tolist() == ["row 1", "row two"]
    assert model.metadata.signature is not None
    assert model.input_example.to_dict("records") == [{"a": 1, "b": None}]


def test_nothing_that_is_stored_is_a_pickle(release: Path, loader: registry.Loader) -> None:
    number = put("plain", release, "a", loader)
    model_id = registry.version("plain", number).model_id
    stored = Path(registry.client().get_logged_model(model_id).artifact_location)
    names = [path.name for path in stored.rglob("*") if path.is_file()]
    assert "MLmodel" in names
    assert [name for name in names if name.endswith((".pkl", ".pickle", ".joblib"))] == []


def test_aliases_mirror_what_is_said(release: Path, loader: registry.Loader) -> None:
    assert registry.aliases("mirrored") == {}
    for digest in "abc":
        put("mirrored", release, digest, loader)
    assert registry.mirror("mirrored", champion=1, previous=None, challenger=2)
    assert registry.aliases("mirrored") == {"champion": 1, "production": 1, "challenger": 2}
    assert not registry.mirror("mirrored", champion=1, previous=None, challenger=2)
    assert registry.mirror("mirrored", champion=3, previous=1, challenger=None)
    assert registry.aliases("mirrored") == {"champion": 3, "production": 3, "previous": 1}
    with pytest.raises(WorkError, match="setting the aliases of 'mirrored'"):
        registry.mirror("mirrored", champion=9, previous=None, challenger=None)


def test_a_crash_between_two_alias_writes_is_repaired_by_the_next(
    release: Path, loader: registry.Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digest in "ab":
        put("crashed", release, digest, loader)
    registry.mirror("crashed", champion=1, previous=None, challenger=2)
    client = type(registry.client())
    real = client.set_registered_model_alias

    def dies(self: Any, name: str, alias: str, version: str) -> None:
        if alias == "previous":
            raise KeyboardInterrupt
        real(self, name, alias, version)

    monkeypatch.setattr(client, "set_registered_model_alias", dies)
    with pytest.raises(KeyboardInterrupt):
        registry.mirror("crashed", champion=2, previous=1, challenger=None)
    monkeypatch.undo()
    assert registry.aliases("crashed") == {"champion": 2, "production": 2, "challenger": 2}
    assert registry.mirror("crashed", champion=2, previous=1, challenger=None)
    assert registry.aliases("crashed") == {"champion": 2, "production": 2, "previous": 1}


def test_an_alias_that_is_taken_away_while_it_is_moved_is_set(release: Path, loader: registry.Loader) -> None:
    from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelAlias

    for digest in "ab":
        put("overtaken", release, digest, loader)
    registry.mirror("overtaken", champion=1, previous=None, challenger=2)
    deleted = []

    def overtake(session: orm.Session, *_: object) -> None:
        moved = [row for row in session.dirty if isinstance(row, SqlRegisteredModelAlias)]
        if moved and not deleted:
            with sa.create_engine(session.get_bind().engine.url).begin() as other:
                gone = other.execute(sa.text("DELETE FROM registered_model_aliases WHERE name = 'overtaken'"))
            deleted.append(gone.rowcount)

    sa.event.listen(orm.Session, "before_flush", overtake)
    try:
        assert registry.mirror("overtaken", champion=1, previous=None, challenger=1)
    finally:
        sa.event.remove(orm.Session, "before_flush", overtake)
    assert deleted == [3] and registry.aliases("overtaken") == {"challenger": 1}


def test_files_lie_beside_a_version(release: Path, loader: registry.Loader, tmp_path: Path) -> None:
    import mlflow.artifacts

    number = put("filed", release, "a", loader)
    bento = tmp_path / "filed-000001.bento"
    bento.write_bytes(b"bento")
    uri = registry.log_file("filed", number, bento, "bento")
    assert registry.fetch_file("filed", number, "bento/filed-000001.bento", tmp_path / "out").read_bytes() == b"bento"
    assert Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path))).read_bytes() == b"bento"
    stored = Path(registry.client().get_logged_model(registry.version("filed", number).model_id).artifact_location)
    assert not (stored / "bento" / bento.name).is_symlink()
    with pytest.raises(WorkError, match="downloading bento/none of version 1 of 'filed' failed"):
        registry.fetch_file("filed", number, "bento/none", tmp_path / "out")


def test_a_deleted_version_is_gone_and_its_number_is_not_given_again(release: Path, loader: registry.Loader) -> None:
    for digest in "ab":
        put("deleted", release, digest, loader)
    registry.mirror("deleted", champion=1, previous=None, challenger=2)
    copy = registry.release_dir("deleted", 2)
    registry.delete_version("deleted", 2)
    assert not copy.exists()
    assert registry.aliases("deleted") == {"champion": 1, "production": 1}
    assert put("deleted", release, "b", loader) == 3
    with pytest.raises(WorkError, match=r"model 'deleted' has no version 2 \(there is: 1, 3\)"):
        registry.delete_version("deleted", 2)
    with pytest.raises(WorkError, match="has no version 2"):
        registry.release_dir("deleted", 2)


def test_tags_of_a_version(release: Path, loader: registry.Loader) -> None:
    number = put("tagged", release, "a", loader)
    registry.set_tag("tagged", number, "state", "archived")
    assert registry.version("tagged", number).tags["state"] == "archived"
    with pytest.raises(WorkError, match="tagging version 7 of 'tagged' failed"):
        registry.set_tag("tagged", 7, "state", "archived")


def test_tags_that_are_set_at_once_are_set(release: Path, loader: registry.Loader) -> None:
    number = put("at_once", release, "a", loader)

    def tag(turn: int) -> None:
        registry.set_tag("at_once", number, f"at-once-{turn // 4}", str(turn % 4))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(tag, range(80)))
    assert {f"at-once-{key}" for key in range(20)} <= registry.version("at_once", number).tags.keys()


def test_the_same_release_registered_at_once_gets_one_number(release: Path, loader: registry.Loader) -> None:
    runs.start_run("at_once")
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: put("at_once", release, "a", loader), range(4)))
    assert numbers == [1, 1, 1, 1]


def test_a_failed_upload_registers_nothing(
    release: Path, loader: registry.Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(registry.client()), "log_model_artifacts", full)
    with pytest.raises(WorkError, match="No space left on device"):
        put("full", release, "a", loader)
    assert registry.versions("full") == ()
    monkeypatch.undo()
    assert put("full", release, "a", loader) == 1


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    ours = ("GAUNTLET_", "MLFLOW_")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-c", STORE]
    (tmp_path / "elsewhere").mkdir()
    started = [
        subprocess.Popen(
            command,
            env={**bare, "GAUNTLET_HOME": str(tmp_path / "home")},
            cwd=tmp_path / "elsewhere",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert {out for out, _ in ended} == {"1 0\n"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_store_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{blocked}/mlflow.db")
    with pytest.raises(WorkError, match="MLFLOW_TRACKING_URI"):
        registry.initialise()


def test_credentials_of_a_url_are_not_repeated() -> None:
    error = registry.refused("x", ValueError("cannot reach postgresql://anna:s3cret@db:5432/mlflow or http://t0ken@h/"))
    assert str(error) == "x failed: MLflow said: cannot reach postgresql://…@db:5432/mlflow or http://…@h/"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real MLflow server on a free port, which this process' tools use."""
    port = free_port()
    homes = {name: value for name, value in environment(tmp_path).items() if name.startswith("MLFLOW_")}
    homes.pop("MLFLOW_TRACKING_URI")
    homes.pop("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    (tmp_path / "mlflow").mkdir()
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**bare, **homes}, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 240
            while not _healthy(url):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.2)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            yield url
        finally:
            os.killpg(process.pid, 15)
            process.wait(120)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_an_mlflow_server_does_as_well(
    server: str, release: Path, loader: registry.Loader, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    assert put("served", release, "a", loader) == put("served", release, "a", loader) == 1
    runs.finish_run(run_id := runs.start_run("served"))
    pictures = {f"{number}.png": b"%d" % number for number in range(9)}
    (tmp_path / "pictures").mkdir()
    for name, content in pictures.items():
        (tmp_path / "pictures" / name).write_bytes(content)
    runs.log_files(run_id, tmp_path / "pictures", "evaluation")
    assert runs.read_files(run_id, "evaluation", ".png") == pictures
    assert runs.list_files(run_id, "evaluation", "8.png", 1) == ("evaluation/8.png",)
    assert runs.read_files(run_id, "nothing", ".png") == runs.read_files("0" * 32, "evaluation", ".png") == {}
    registry.mirror("served", champion=1, previous=None, challenger=None)
    assert registry.aliases("served") == {"champion": 1, "production": 1}
    assert (registry.release_dir("served", 1) / "said.txt").read_text() == "row "
    (tmp_path / "x.bento").write_text("bento")
    registry.log_file("served", 1, tmp_path / "x.bento", "bento")
    assert registry.fetch_file("served", 1, "bento/x.bento", tmp_path / "out").read_text() == "bento"
    answers = mlflow.pyfunc.load_model("models:/served@champion").predict(pd.DataFrame([{"a": 1}]))
    assert answers["prediction"].tolist() == ["row 1"]
    assert capfd.readouterr().out == ""
    registry.discard("served", 1, keep=("bento",))
    assert registry.stored("served", 1) == ("bento",)
    assert registry.versions("served")[0].digest == "a"
