"""Retiring, and rolling back to what was really damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import WorkError
from stacks import registry
from stacks.ledger import Conflict, Entry, open_ledger
from steps import retire as module
from steps.build import BENTO_FOLDER, bento_file, bento_version
from steps.deploy import stage, store_dir
from steps.promote import decide, repair, rollback
from steps.retire import retire
from tests.steps.arena import Arena, against, config_of, evaluation_of, package_of, small_release


@pytest.fixture
def arena(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """Five versions: v1 to v3 were promoted one after the other, v4 was kept, v5 waits for a person."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    made = Arena(tmp_path, dict(os.environ))
    made.add_versions(5)
    for version in (1, 2, 3):
        stands = evaluation_of(made.model) if version == 1 else against(version - 1, 0.5, 0.9, made.model)
        assert _decide(made, version, stands) == "promoted"
        repair(made.model)
    assert _decide(made, 4, against(3, 0.9, 0.9, made.model)) == "kept"
    assert _decide(made, 5, evaluation_of(made.model)) == "pending"
    return made


def _decide(arena: Arena, version: int, evaluation: Any) -> str:
    return str(decide(config_of(arena.model), evaluation, package_of(version, arena.model)).decision)


def _stored(arena: Arena, version: int) -> Path:
    """Where MLflow keeps a version's files."""
    model_id = registry.version(arena.model, version).model_id
    return Path(registry.client().get_logged_model(model_id).artifact_location)


def _seen(arena: Arena) -> object:
    """What a refused command must leave as it was."""
    latest = (store_dir() / arena.model / "latest").read_text()
    return open_ledger().history(arena.model), registry.aliases(arena.model), latest


def test_a_retired_version_leaves_its_evidence_and_its_number_for_good(arena: Arena, tmp_path: Path) -> None:
    assert (store_dir() / arena.model / bento_version(1)).is_dir()
    local = registry.release_dir(arena.model, 1)
    entry = retire(arena.model, 1, why="two champions ago", actor="ada")
    assert (entry.action, entry.version, entry.why, entry.actor) == ("retire", 1, "two champions ago", "ada")
    assert entry.payload["from"] == "validation"
    assert open_ledger().state(arena.model, 1) == "retired"
    left = sorted(
        path.relative_to(_stored(arena, 1)).as_posix() for path in _stored(arena, 1).rglob("*") if path.is_file()
    )
    judged = ("card-000001.html", "card-000001.md", "verdict-000001.json")
    content = ("config.yaml", "evidence/times.json", "manifest.json", "metrics.json", "schema.json", "training.json")
    assert left == [*(f"archive/{name}" for name in content), *(f"evidence/{name}" for name in judged)]
    for name in content:
        assert (_stored(arena, 1) / "archive" / name).read_bytes() == (small_release() / name).read_bytes()
    assert not local.exists()
    assert not (store_dir() / arena.model / bento_version(1)).exists()
    tags = registry.version(arena.model, 1).tags
    assert (tags["gauntlet.state"], tags[registry.RETIRED_TAG]) == ("retired", "archived")
    assert registry.aliases(arena.model) == {"champion": 3, "production": 3, "previous": 2, "challenger": 5}
    assert (store_dir() / arena.model / "latest").read_text() == bento_version(3)
    assert repair(arena.model) == ()
    assert open_ledger().verify() == []

    before = _seen(arena)
    with pytest.raises(WorkError, match=r"v1 of .* is retired; roll back to another"):
        rollback(arena.model, 1)
    with pytest.raises(WorkError, match=r"v1 of .* is retired already"):
        retire(arena.model, 1)
    with pytest.raises(WorkError, match=r"v1 of .* is retired; training it again registers the same Release"):
        _decide(arena, 1, against(3, 0.5, 0.9, arena.model))
    assert _seen(arena) == before


def test_what_somebody_needs_or_comes_to_need_meanwhile_is_not_retired(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _seen(arena)
    for version, said in ((3, "is the champion"), (2, "is what a rollback returns to"), (5, "waits for a person")):
        with pytest.raises(WorkError, match=said):
            retire(arena.model, version)
    with pytest.raises(WorkError, match="has no version 9"):
        retire(arena.model, 9)
    assert _seen(arena) == before
    assert set(registry.stored(arena.model, 2)) == {"artifacts", "bento", "evidence"}

    real = module.require

    def overtaken(*args: Any) -> None:
        real(*args)
        open_ledger().append("pending", arena.model, 4)

    monkeypatch.setattr(module, "require", overtaken)
    with pytest.raises(Conflict, match="nothing was changed: run it again"):
        retire(arena.model, 4)
    assert open_ledger().state(arena.model, 4) == "staging"
    assert "artifacts" in registry.stored(arena.model, 4)


def test_of_a_damaged_release_what_is_left_is_archived(arena: Arena) -> None:
    release = _stored(arena, 4) / registry.RELEASE_PATH
    (release / "schema.json").unlink()
    (release / "metrics.json").write_text("{}")
    retire(arena.model, 4)
    kept = {path.name for path in (_stored(arena, 4) / "archive").iterdir()}
    assert kept == {"manifest.json", "config.yaml", "metrics.json", "training.json", "evidence"}


def _flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _no_release(arena: Arena) -> None:
    (_stored(arena, 1) / registry.RELEASE_PATH / "manifest.json").unlink()


def _a_bit_of_the_pipeline(arena: Arena) -> None:
    _flip(_stored(arena, 1) / registry.RELEASE_PATH / "pipeline.skops")


def _a_file_more(arena: Arena) -> None:
    (_stored(arena, 1) / registry.RELEASE_PATH / "more.py").write_text("")


def _another_manifest(arena: Arena) -> None:
    path = _stored(arena, 1) / registry.RELEASE_PATH / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))


def _drop_bento(arena: Arena) -> None:
    shutil.rmtree(store_dir() / arena.model / bento_version(1), ignore_errors=True)


def _no_bento(arena: Arena) -> None:
    _drop_bento(arena)
    (_stored(arena, 1) / BENTO_FOLDER / bento_file(arena.model, 1)).unlink()


def _a_bit_of_the_bento(arena: Arena) -> None:
    _drop_bento(arena)
    _flip(_stored(arena, 1) / BENTO_FOLDER / bento_file(arena.model, 1))


def _another_version_s_bento(arena: Arena) -> None:
    _drop_bento(arena)
    other = _stored(arena, 2) / BENTO_FOLDER / bento_file(arena.model, 2)
    (_stored(arena, 1) / BENTO_FOLDER / bento_file(arena.model, 1)).write_bytes(other.read_bytes())


@pytest.fixture
def judged(arena: Arena) -> Entry:
    """The ledger names the manifest of v1, as it does of every packaged version."""
    _, manifest = registry.place(arena.model, 1)
    entry = open_ledger().append("keep", arena.model, 1, payload={"manifest_sha256": manifest})
    repair(arena.model)
    return entry


DAMAGES: dict[Callable[[Arena], None], str] = {
    _no_release: "cannot be served any more: there is no Release",
    _a_bit_of_the_pipeline: "pipeline.skops is not what its manifest says",
    _a_file_more: "more.py not in its manifest",
    _another_manifest: "its manifest is not the one that the ledger names",
    _no_bento: "failed: MLflow said",
    _a_bit_of_the_bento: "cannot be unpacked",
    _another_version_s_bento: "calls itself",
}


def test_rolling_back_to_what_was_damaged_is_refused_unless_it_can_be_brought_back(arena: Arena, judged: Entry) -> None:
    sound = shutil.copytree(_stored(arena, 1), arena.folder / "sound")
    before = _seen(arena)
    for damage, said in DAMAGES.items():
        damage(arena)
        with pytest.raises(WorkError) as caught:
            rollback(arena.model, 1)
        assert said in str(caught.value), damage.__name__
        assert _seen(arena) == before
        assert repair(arena.model) == ()
        shutil.rmtree(_stored(arena, 1))
        shutil.copytree(sound, _stored(arena, 1))
    # What can be brought back is, and is then rolled back to.
    assert stage(arena.model, 1), "its Bento was missing"
    _flip(store_dir() / arena.model / bento_version(1) / "src" / "version.txt")
    rollback(arena.model, 1)
    assert (open_ledger().champion(arena.model), registry.aliases(arena.model)["champion"]) == (1, 1)
    assert not stage(arena.model, 1), "its Bento is sound again"
    assert open_ledger().verify() == []
