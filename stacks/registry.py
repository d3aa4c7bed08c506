"""Versions and aliases of models in MLflow: the one module that writes them.

Everything goes through an explicit client and explicit run ids; MLflow's active run, active experiment and
autologging are never used. The store is `MLFLOW_TRACKING_URI` (see `stacks.home`): a database or an MLflow server.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from filelock import FileLock

from models.errors import WorkError, bounded
from stacks.home import home_dir, use_home
from stacks.logs import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PRODUCTION, PREVIOUS, CHALLENGER = "champion", "production", "previous", "challenger"
DIGEST_TAG = "gauntlet.release_digest"
RETIRED_TAG = "gauntlet.retired"
SEMVER_TAG = "gauntlet.semver"
RELEASE_PATH = "artifacts/release"
MANIFEST = "manifest.json"
# How SQLAlchemy names a broken unique constraint, by class, and for drivers with classes of their own by its help page;
# and a row that was deleted between its reading and its update.
_OVERTAKEN = ("IntegrityError", "sqlalche.me/e/20/gkpj", "expected to update 1 row(s); 0 were matched")


@dataclass(frozen=True)
class Version:
    """One registered version of a model: one number for one Release."""

    model: str
    number: int
    digest: str
    run_id: str
    model_id: str
    created: float = field(compare=False, metadata={"unit": "seconds since the epoch"})
    tags: Mapping[str, str] = field(compare=False)


@dataclass(frozen=True)
class Loader:
    """How MLflow loads a Release by itself: what `register` stores beside it.

    Attributes:
        script: Python file that ends in `mlflow.models.set_model(...)`; the Release is its artifact `release`.
        code: Folders of packages that the script imports, each copied whole.
        signature: An `mlflow.models.ModelSignature`.
        example: A frame of a few raw rows.
        requirements: Pins for a process that has only MLflow.
    """

    script: Path
    code: tuple[Path, ...]
    signature: Any
    example: Any
    requirements: tuple[str, ...]


def tracking_uri() -> str:
    """The MLflow store of this process: `MLFLOW_TRACKING_URI`, which is given its default here."""
    use_home()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return os.environ["MLFLOW_TRACKING_URI"]


def initialise() -> None:
    """Make the store usable: MLflow's first-use migration, once, under a lock between processes.

    Raises:
        WorkError: The store cannot be reached.
    """
    _initialised(tracking_uri())


def client() -> "MlflowClient":
    """A client of the initialised store."""
    from mlflow import MlflowClient

    uri = tracking_uri()
    _initialised(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def register(
    model: str,
    release_dir: Path,
    *,
    digest: str,
    run_id: str,
    loader: Loader,
    tags: Callable[[Sequence[Version]], Mapping[str, str]] | None = None,
) -> int:
    """Give a Release its version number; one whose digest is already registered keeps the number it has.

    A retired version's files are gone: an equal Release gets a new number.

    Args:
        model: Name of the model.
        release_dir: The Release, copied into MLflow.
        digest: The Release digest.
        run_id: The MLflow run that made it.
        loader: What lets `mlflow.pyfunc.load_model` load it anywhere.
        tags: Tags of a new version, given those that there are, the oldest first; no other process of this home
            registers meanwhile.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    store = client()
    with _lock("register"):
        there = versions(model)
        for known in there:
            if known.digest == digest and RETIRED_TAG not in known.tags:
                return known.number
        try:
            _ensure_registered_model(store, model)
            model_id = _log_release(store, model, release_dir, digest, run_id, loader)
            created = store.create_model_version(
                model,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags={**(tags(there) if tags else {}), DIGEST_TAG: digest},
            )
        except (MlflowException, OSError) as error:
            raise refused(f"registering a Release of '{model}'", error) from error
    return int(created.version)


def versions(model: str) -> tuple[Version, ...]:
    """All registered versions of a model, oldest first; empty when there is none."""
    store = client()
    found: list[Version] = []
    token: str | None = None
    while True:
        page = store.search_model_versions(f"name='{model}'", max_results=1_000, page_token=token)
        found += [_version(entry) for entry in page]
        token = page.token
        if not token:
            return tuple(sorted(found, key=lambda entry: entry.number))


def version(model: str, number: int) -> Version:
    """One registered version.

    Raises:
        WorkError: There is none of that number; the message names those that exist.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _version(client().get_model_version(model, str(number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise refused(f"looking up version {number} of '{model}'", error) from error
    there = ", ".join(str(known.number) for known in versions(model)[-20:])
    raise WorkError(f"model '{model}' has no version {number} (there is: {there or 'none'})")


def release_dir(model: str, number: int) -> Path:
    """A local copy of a version's Release, downloaded once. Whoever opens it verifies its sums.

    Raises:
        WorkError: There is no such version, or it cannot be downloaded.
    """
    folder = home_dir() / "releases" / version(model, number).model_id
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as draft:
            copy = _download(model, number, RELEASE_PATH, Path(draft))
            try:
                copy.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def fetch_release(model: str, number: int, dst: Path) -> Path:
    """A version's Release as it is stored now, downloaded into the folder `dst`; nothing is verified.

    Raises:
        WorkError: There is no such version, or it cannot be downloaded.
    """
    return _download(model, number, RELEASE_PATH, dst)


def place(model: str, number: int) -> tuple[str, str]:
    """Where a version's Release lies, for services that follow the ledger and have no MLflow.

    Returns:
        A directory for fsspec; and the SHA-256 of the manifest there, which holds the sums of all its files.

    Raises:
        WorkError: There is no such version, or it cannot be read.
    """
    with tempfile.TemporaryDirectory() as draft:
        manifest = _download(model, number, f"{RELEASE_PATH}/{MANIFEST}", Path(draft)).read_bytes()
    return f"{_location(model, number)}/{RELEASE_PATH}", hashlib.sha256(manifest).hexdigest()


def aliases(model: str) -> dict[str, int]:
    """Alias to version number; empty when the model is not registered."""
    from mlflow.exceptions import MlflowException

    try:
        registered = client().get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise refused(f"reading the aliases of '{model}'", error) from error
    return {alias: int(number) for alias, number in sorted(registered.aliases.items())}


def mirror(model: str, *, champion: int | None, previous: int | None, challenger: int | None) -> bool:
    """Make the aliases champion, production, previous and challenger say what the ledger says.

    Safe to repeat after a crash between two writes: only what differs is written.

    Returns:
        Whether anything had to be written.

    Raises:
        WorkError: A version does not exist, or MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    wanted = {CHAMPION: champion, PRODUCTION: champion, PREVIOUS: previous, CHALLENGER: challenger}
    there = aliases(model)
    store = client()
    changed = False
    try:
        for alias, number in wanted.items():
            if there.get(alias) == number:
                continue
            if number is None:
                store.delete_registered_model_alias(model, alias)
            else:
                write_shared(partial(store.set_registered_model_alias, model, alias, str(number)))
            changed = True
    except MlflowException as error:
        raise refused(f"setting the aliases of '{model}'", error) from error
    return changed


def set_tag(model: str, number: int, key: str, value: str) -> None:
    """Set a tag of a version.

    Raises:
        WorkError: There is no such version, or MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        write_shared(partial(client().set_model_version_tag, model, str(number), key, value))
    except MlflowException as error:
        raise refused(f"tagging version {number} of '{model}'", error) from error


def log_file(model: str, number: int, path: Path, folder: str) -> str:
    """Store a file beside a version's Release, for example its Bento.

    Returns:
        Its URI, which `mlflow.artifacts.download_artifacts` understands; `<folder>/<file name>` is the
        `artifact_path` for `fetch_file`.

    Raises:
        WorkError: There is no such version, or MLflow refused.
    """
    log_files(model, number, (path,), folder)
    return f"models:/{model}/{number}/{folder}/{path.name}"


def log_files(model: str, number: int, paths: Sequence[Path], folder: str) -> None:
    """Store files beside a version's Release, each as `<folder>/<file name>`.

    Raises:
        WorkError: There is no such version, or MLflow refused.
    """
    with tempfile.TemporaryDirectory() as staged:
        # A folder of its own: the client logs folders of a logged model, not single files.
        for path in paths:
            (Path(staged) / path.name).symlink_to(path.absolute())
        log_folder(model, number, Path(staged), folder)


def log_folder(model: str, number: int, local: Path, folder: str) -> None:
    """Store the files of a local folder beside a version's Release.

    Raises:
        WorkError: There is no such version, or MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    model_id = version(model, number).model_id
    try:
        client().log_model_artifacts(model_id, str(local), folder)
    except (MlflowException, OSError) as error:
        raise refused(f"storing {folder} with version {number} of '{model}'", error) from error


def fetch_file(model: str, number: int, artifact_path: str, dst: Path) -> Path:
    """Download a file that `log_file` stored (`<folder>/<file name>`) into the folder `dst`.

    Raises:
        WorkError: There is no such version or file.
    """
    dst.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dst, prefix=".") as draft:
        copy = _download(model, number, artifact_path, Path(draft))
        return copy.replace(dst / copy.name)


def stored(model: str, number: int, folder: str = "") -> tuple[str, ...]:
    """Paths of the files and folders that lie with a version, in one folder of it; empty where there are none.

    Raises:
        WorkError: There is no such version, or they cannot be listed.
    """
    from mlflow.exceptions import MlflowException

    try:
        return tuple(entry.path for entry in _artifacts(model, number).list_artifacts(folder))
    except (MlflowException, OSError) as error:
        raise refused(f"listing the files of version {number} of '{model}'", error) from error


def discard(model: str, number: int, *, keep: Collection[str]) -> None:
    """Delete what lies with a version but some of its folders, and the local copy of its Release; it stays a version.

    Raises:
        WorkError: There is no such version, or MLflow refused; what is left goes with the next try.
    """
    from mlflow.exceptions import MlflowException

    shutil.rmtree(home_dir() / "releases" / version(model, number).model_id, ignore_errors=True)
    artifacts = _artifacts(model, number)
    for path in stored(model, number):
        if path in keep:
            continue
        try:
            artifacts.delete_artifacts(path)
        except (MlflowException, OSError) as error:
            raise refused(f"deleting {path} of version {number} of '{model}'", error) from error


def delete_version(model: str, number: int) -> None:
    """Delete a version and the aliases that point to it. Its number is not given again.

    Raises:
        WorkError: There is no such version.
    """
    shutil.rmtree(home_dir() / "releases" / version(model, number).model_id, ignore_errors=True)
    client().delete_model_version(model, str(number))


@lru_cache
def _initialised(uri: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with _lock("migrate"), _quietly(), _artifact_root():
        try:
            MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise refused("opening the MLflow store (MLFLOW_TRACKING_URI)", error) from error


def artifact_root() -> str | None:
    """Folder or URL of the artifacts; None for an MLflow server, which decides for itself."""
    if urlparse(tracking_uri()).scheme in ("http", "https"):
        return None
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or str(home_dir() / "mlflow" / "artifacts")


@contextmanager
def _artifact_root() -> Iterator[None]:
    """Have MLflow's first experiment put its artifacts where ours lie, not into the working directory.

    Its store reads this variable only; left set, it would take this process for a server.
    """
    name, root = "_MLFLOW_SERVER_ARTIFACT_ROOT", artifact_root()
    if root is None or name in os.environ:
        yield
        return
    os.environ[name] = root
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep MLflow's notes on its own housekeeping from the user's terminal; warnings and errors stay."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "mlflow.pyfunc")]
    levels = [logger.level for logger in loggers]
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _lock(name: str) -> FileLock:
    folder = home_dir() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def write_shared(write: Callable[[], object]) -> None:
    """Write what others may be writing too, a tag, an alias, the name of data.

    Of two that write a new one at once MLflow refuses one, whatever the database, and who sets what another deletes;
    when it tries again it finds what the other left.

    Raises:
        MlflowException: MLflow refused for another reason, or twice.
    """
    from mlflow.exceptions import MlflowException

    try:
        write()
    except MlflowException as error:
        if not any(sign in str(error) for sign in _OVERTAKEN):
            raise
        write()


def refused(doing: str, error: Exception) -> WorkError:
    """What a user is told when MLflow refused, in bounded text without the credentials of a URL."""
    said = masked(" ".join(str(error).split()))
    return WorkError(f"{doing} failed: MLflow said: {bounded(said, 500)}")


def _ensure_registered_model(store: "MlflowClient", model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_release(store: "MlflowClient", model: str, release_dir: Path, digest: str, run_id: str, loader: Loader) -> str:
    """Log the Release with its loader as a finalized MLflow logged model; return the model's id."""
    import mlflow.pyfunc

    # Else MLflow looks for a uv project in the working directory and stores its files with the model.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    with tempfile.TemporaryDirectory() as draft, _quietly():
        folder = Path(draft) / "model"
        # MLflow keeps the folder's own name, not the artifact's.
        release = shutil.copytree(release_dir, Path(draft) / "release")
        mlflow.pyfunc.save_model(
            folder,
            python_model=loader.script,
            artifacts={"release": str(release)},
            code_paths=[str(path) for path in loader.code],
            signature=loader.signature,
            input_example=loader.example,
            pip_requirements=list(loader.requirements),
        )
        experiment_id = store.get_run(run_id).info.experiment_id
        logged = store.create_logged_model(
            experiment_id, name=model, source_run_id=run_id, tags={DIGEST_TAG: digest}, model_type="release"
        )
        try:
            store.log_model_artifacts(logged.model_id, str(folder))
        except BaseException:
            store.finalize_logged_model(logged.model_id, "FAILED")
            raise
        store.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _version(entry: Any) -> Version:
    tags = dict(entry.tags)
    return Version(
        model=entry.name,
        number=int(entry.version),
        digest=tags.get(DIGEST_TAG, ""),
        run_id=entry.run_id or "",
        # The SQL store keeps no model id with a version, only the source that we gave.
        model_id=entry.source.removeprefix("models:/"),
        created=entry.creation_timestamp / 1000,
        tags=tags,
    )


def _download(model: str, number: int, artifact_path: str, dst: Path) -> Path:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        with _quietly():
            uri = f"{_location(model, number)}/{artifact_path}"
            local = mlflow.artifacts.download_artifacts(uri, dst_path=str(dst), tracking_uri=tracking_uri())
    except (MlflowException, OSError) as error:
        raise refused(f"downloading {artifact_path} of version {number} of '{model}'", error) from error
    return Path(local)


def _location(model: str, number: int) -> str:
    return str(client().get_logged_model(version(model, number).model_id).artifact_location)


def artifacts_at(uri: str) -> Any:
    """MLflow's repository of the artifacts at a URI of the store's."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=tracking_uri())


def _artifacts(model: str, number: int) -> Any:
    return artifacts_at(_location(model, number))
