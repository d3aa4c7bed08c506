"""Versions and aliases of models in MLflow: the one module that writes them.

Everything goes through an explicit client and explicit run ids; MLflow's active run, active experiment and
autologging are never used. The store is `MLFLOW_TRACKING_URI` (see `stacks.home`): a database or an MLflow server.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from models.errors import WorkError, bounded
from stacks.home import home_dir, use_home

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PRODUCTION, PREVIOUS, CHALLENGER = "champion", "production", "previous", "challenger"
DIGEST_TAG = "gauntlet.release_digest"
RELEASE_PATH = "artifacts/release"


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
        script: Python file that ends in `mlflow.models.set_model(...)`; it finds the Release as artifact `release`.
        code: Folder to the importable packages that the script needs: package name to the files in it.
        signature: An `mlflow.models.ModelSignature`.
        example: A few raw rows.
        requirements: Pins for a process that has only MLflow.
    """

    script: Path
    code: Path
    signature: Any
    example: Any
    requirements: tuple[str, ...]


def tracking_uri() -> str:
    """The MLflow store of this process: `MLFLOW_TRACKING_URI`, which is given its default here."""
    use_home()
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
    tags: Mapping[str, str] | None = None,
) -> int:
    """Give a Release its version number; one whose digest is already registered keeps the number it has.

    Args:
        model: Name of the model.
        release_dir: The Release, copied into MLflow.
        digest: The Release digest.
        run_id: The MLflow run that made it.
        loader: What lets `mlflow.pyfunc.load_model` load it anywhere.
        tags: Tags of a new version.

    Raises:
        WorkError: MLflow refused.
    """
    raise NotImplementedError


def versions(model: str) -> tuple[Version, ...]:
    """All registered versions of a model, oldest first; empty when there is none."""
    raise NotImplementedError


def version(model: str, number: int) -> Version:
    """One registered version.

    Raises:
        WorkError: There is none of that number; the message names those that exist.
    """
    raise NotImplementedError


def release_dir(model: str, number: int) -> Path:
    """A local copy of a version's Release, downloaded once. Whoever opens it verifies its sums.

    Raises:
        WorkError: There is no such version, or it cannot be downloaded.
    """
    raise NotImplementedError


def aliases(model: str) -> dict[str, int]:
    """Alias to version number; empty when the model is not registered."""
    raise NotImplementedError


def mirror(model: str, *, champion: int | None, previous: int | None, challenger: int | None) -> bool:
    """Make the aliases champion, production, previous and challenger say what the ledger says.

    Returns:
        Whether anything had to be written.
    """
    raise NotImplementedError


def set_tag(model: str, number: int, key: str, value: str) -> None:
    """Set a tag of a version."""
    raise NotImplementedError


def log_file(model: str, number: int, path: Path, folder: str) -> str:
    """Store a file beside a version's Release, for example its Bento.

    Returns:
        Its URI, which `mlflow.artifacts.download_artifacts` understands; the part after the model's id is the
        `artifact_path` for `fetch_file`.
    """
    raise NotImplementedError


def fetch_file(model: str, number: int, artifact_path: str, dst: Path) -> Path:
    """Download a file that `log_file` stored (`<folder>/<file name>`) into the folder `dst`.

    Raises:
        WorkError: There is no such version or file.
    """
    raise NotImplementedError


def delete_version(model: str, number: int) -> None:
    """Delete a version and the aliases that point to it. Its number is not given again.

    Raises:
        WorkError: There is no such version.
    """
    raise NotImplementedError
