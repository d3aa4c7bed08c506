"""Deploying: `<model>:latest` of the user's BentoML store is the ledger's champion.

BentoML keeps `latest` in a file and writes it anew at every delete and import: as the Bento with the newest creation
time. So deploying does both: it writes the file, and dates the champion after every other Bento of the model. A
`bentoml delete` of another version, without any command of ours after it, then leaves `latest` as it was.
"""

import hashlib
import json
import logging
import lzma
import os
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict
from zenml import step

from bentos.release import Release
from models.errors import WorkError
from stacks import registry
from stacks.home import use_home
from stacks.ledger import open_ledger
from steps.build import BENTO_FOLDER, bento_file, bento_version
from steps.serve import serve_briefly
from steps.verdict import Verdict

LOG = logging.getLogger(__name__)
SUMS = "gauntlet.json"
INFO = "bento.yaml"
_CREATED = re.compile(r"(?m)^creation_time: (.*)$")
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class Published(BaseModel):
    """What the user's BentoML store holds for a model.

    Attributes:
        version: The champion; None when the model has none.
        tag: Its Bento.
        imported: Whether the Bento had to be brought into the store.
        changed: Whether anything had to be written.
        answer: What `<model>:latest` answered to one of its golden inputs over HTTP; None where it was not asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int | None
    tag: str | None
    imported: bool = False
    changed: bool = False
    answer: dict[str, Any] | None = None


def publish(model: str) -> Published:
    """Make `<model>:latest` the ledger's champion, importing its Bento when it is missing or damaged.

    Cheap when nothing is wrong; the champion is read from the ledger while no other process publishes the model.

    Raises:
        WorkError: The champion's Bento is neither in the store nor in the registry, or is not what it should be.
    """
    with _locked(model) as folder:
        standing = open_ledger().standing(model)
        if standing.champion is None:
            return Published(model=model, version=None, tag=None)
        imported = _stage(model, standing.champion, folder)
        pointed = _point(folder, standing.champion, standing.previous)
        version = bento_version(standing.champion)
        return Published(
            model=model,
            version=standing.champion,
            tag=f"{model}:{version}",
            imported=imported,
            changed=imported or pointed,
        )


def stage(model: str, version: int) -> bool:
    """Have a version's Bento sound in the user's store, `latest` untouched; whether it had to be imported.

    Raises:
        WorkError: Its Bento is neither in the store nor in the registry, or is not what it should be.
    """
    with _locked(model) as folder:
        return _stage(model, version, folder)


def delete_bento(model: str, version: int) -> None:
    """Delete a version's Bento from the user's store; it stays in the registry.

    Raises:
        WorkError: It is the champion's.
    """
    if open_ledger().champion(model) == version:
        raise WorkError(f"v{version} of '{model}' is the champion; promote or roll back to another before deleting it")
    with _locked(model) as folder:
        doomed = folder / bento_version(version)
        if doomed.is_dir():
            shutil.rmtree(_aside(doomed))
    publish(model)


def faults(model: str, champion: int) -> list[str]:
    """What keeps `<model>:latest` from being the champion, in words; nothing is changed."""
    folder = store_dir() / model
    found = _damage(folder / bento_version(champion))
    latest = _latest(folder)
    if latest != bento_version(champion):
        found.append(f"{model}:latest is {latest or 'not set'}, the champion is {bento_version(champion)}")
    return found


def store_dir() -> Path:
    """The Bentos of the user's BentoML store."""
    use_home()
    return Path(os.environ["BENTOML_HOME"]) / "bentos"


@contextmanager
def _locked(model: str) -> Iterator[Path]:
    """The model's folder in the store, for one process at a time; what a killed one left half done is removed."""
    store = store_dir()
    store.mkdir(parents=True, exist_ok=True)
    draft = _draft_dir(store / model)
    draft.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(draft.with_name(f"{model}.lock")):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            yield store / model
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _draft_dir(folder: Path) -> Path:
    # Beside the store and on its disk: what lies here can be renamed into it, and BentoML does not list it.
    return folder.parent.parent / "tmp" / "gauntlet" / folder.name


def _stage(model: str, version: int, folder: Path) -> bool:
    target = folder / bento_version(version)
    damage = _damage(target)
    if not damage:
        return False
    draft = _draft_dir(folder)
    archive = registry.fetch_file(model, version, f"{BENTO_FOLDER}/{bento_file(model, version)}", draft)
    unpacked = draft / "bento"
    _unpack(archive, unpacked)
    _require_tag(unpacked, model, version)
    (unpacked / SUMS).write_text(json.dumps({"files": _sums(unpacked)}, sort_keys=True))
    if target.exists():
        LOG.warning("the Bento %s:%s was damaged (%s): imported again", model, target.name, damage[0])
        _aside(target)
    folder.mkdir(exist_ok=True)
    unpacked.rename(target)
    return True


def _aside(bento: Path) -> Path:
    """Take a Bento out of the store in one move."""
    draft = _draft_dir(bento.parent)
    draft.mkdir(parents=True, exist_ok=True)
    return bento.rename(draft / f"old-{uuid.uuid4().hex}")


def _unpack(archive: Path, target: Path) -> None:
    """Unpack folders and plain files; a Bento of ours has nothing else."""
    try:
        with tarfile.open(archive, "r:xz") as members:
            for member in members:
                place = (target / member.name).resolve()
                if not place.is_relative_to(target.resolve()) or not (member.isdir() or member.isfile()):
                    raise WorkError(f"the Bento {archive.name} holds '{member.name}', which is not unpacked")
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                content = members.extractfile(member)
                assert content is not None
                with content, place.open("wb") as file:
                    shutil.copyfileobj(content, file)
                place.chmod(0o644 | member.mode & 0o111)
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise WorkError(
            f"the Bento {archive.name} of the registry cannot be unpacked: {type(error).__name__}"
        ) from error


def _require_tag(bento: Path, model: str, version: int) -> None:
    info = bento / INFO
    said = yaml.safe_load(info.read_text(encoding="utf-8")) if info.is_file() else {}
    tag = f"{said.get('name')}:{said.get('version')}"
    if tag != f"{model}:{bento_version(version)}":
        raise WorkError(f"the Bento that the registry holds for v{version} of '{model}' calls itself {tag}")


def _damage(bento: Path) -> list[str]:
    """What is wrong with a Bento in the store; files that came with serving it (bytecode) are none of it."""
    name = f"{bento.parent.name}:{bento.name}"
    if not bento.is_dir():
        return [f"the Bento {name} is not in the store"]
    try:
        expected = json.loads((bento / SUMS).read_text())["files"]
        changed = [path for path, digest in expected.items() if _sum(bento / path) != digest]
    except (OSError, ValueError, KeyError) as error:
        return [f"the Bento {name} cannot be checked: {type(error).__name__}"]
    return [f"the Bento {name} differs in {changed[0]} ({len(changed)} files in all)"] if changed else []


def _sums(bento: Path) -> dict[str, str]:
    files = sorted(path for path in bento.rglob("*") if path.is_file())
    return {path.relative_to(bento).as_posix(): _sum(path) for path in files}


def _sum(path: Path) -> str:
    content = path.read_bytes()
    if path.name == INFO:
        content = _CREATED.sub("", content.decode()).encode()
    return hashlib.sha256(content).hexdigest()


def _point(folder: Path, champion: int, previous: int | None) -> bool:
    """Date the champion after every other Bento, the previous one just before it, and name it `latest`."""
    mine = [bento_version(v) for v in (previous, champion) if v is not None and (folder / bento_version(v)).is_dir()]
    others = [path for path in folder.iterdir() if path.is_dir() and path.name not in mine]
    newest = max((_created(path) for path in others), default=_BEGINNING)
    changed = False
    for version in mine:
        created = _created(folder / version)
        if created <= newest:
            created = max(datetime.now(UTC), newest + timedelta(microseconds=1))
            _date(folder / version, created)
            changed = True
        newest = created
    if _latest(folder) != bento_version(champion):
        _replace(folder / "latest", bento_version(champion))
        changed = True
    return changed


def _created(bento: Path) -> datetime:
    """Creation time of a Bento; the beginning of time when it says none."""
    info = bento / INFO
    found = _CREATED.search(info.read_text(encoding="utf-8")) if info.is_file() else None
    try:
        moment = datetime.fromisoformat(str(yaml.safe_load(found[1]))) if found else _BEGINNING
    except (ValueError, yaml.YAMLError):
        return _BEGINNING
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _date(bento: Path, moment: datetime) -> None:
    text = (bento / INFO).read_text(encoding="utf-8")
    _replace(bento / INFO, _CREATED.sub(f"creation_time: '{moment.isoformat()}'", text))


def _latest(folder: Path) -> str | None:
    try:
        return (folder / "latest").read_text().strip() or None
    except FileNotFoundError:
        return None


def _replace(path: Path, text: str) -> None:
    draft = _draft_dir(path.parent if path.name == "latest" else path.parent.parent)
    draft.mkdir(parents=True, exist_ok=True)
    written = draft / uuid.uuid4().hex
    written.write_text(text, encoding="utf-8")
    written.replace(path)


def ask_latest(model: str, version: int) -> dict[str, Any]:
    """Serve `<model>:latest` for a moment and return its answer to a golden input.

    Raises:
        WorkError: It does not serve, or another version than `version` answers.
    """
    golden = Release.open(registry.release_dir(model, version)).golden[0]
    _, (answer,) = serve_briefly(f"{model}:latest", [golden.inputs], store_dir())
    if answer["version"] != version:
        raise WorkError(
            f"{model}:latest serves v{answer['version']}, but v{version} is champion; see `gauntlet doctor`"
        )
    return answer


def publish_and_ask(model: str) -> Published:
    """Publish the champion and let it answer once; one that answered, and was not written since, is not served again.

    Raises:
        WorkError: It cannot be published, or does not answer; the next call asks it again.
    """
    published = publish(model)
    if published.version is None:
        LOG.info("%s has no champion: nothing is published", model)
        return published
    answered = _draft_dir(store_dir() / model).with_name(f"{model}.answered")
    if published.changed:
        answered.unlink(missing_ok=True)
    if answered.is_file() and answered.read_text() == published.tag:
        LOG.info("%s:latest is %s, as before", model, published.tag)
        return published
    LOG.info("%s:latest is %s", model, published.tag)
    answer = ask_latest(model, published.version)
    answered.write_text(str(published.tag))
    return published.model_copy(update={"answer": answer})


@step(enable_cache=False)
def deploy(verdict: Verdict) -> Annotated[Published, "published"]:
    """Publish the champion, whether this verdict made it or left it, and see it answer; see `publish_and_ask`."""
    return publish_and_ask(verdict.model)
