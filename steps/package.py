"""Packaging: a Release becomes a Bento that was built, served and timed in a place apart."""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError
from zenml import step

from bentos.release import Release
from models.errors import WorkError, bounded
from stacks import registry
from stacks.commit import commit
from steps.build import BENTO_FOLDER, bento_file, bento_version, build_bento
from steps.evaluate import Evaluation
from steps.partitions import Partitions, in_turn, sample_rows
from steps.prove import prove_fast_path
from steps.register import register_release
from steps.serve import Latency, smoke_test

LOG = logging.getLogger(__name__)
TAG = "gauntlet.package"
PROVEN_ROWS = 20_000


class Package(BaseModel):
    """A version's Bento and what its smoke test said.

    Attributes:
        model: Name of the model.
        version: Its number.
        tag: `<model>:<version as six digits>`.
        bento_uri: Where the `.bento` file lies in the registry's artifacts.
        release_uri: Where its Release lies, for services that follow the ledger.
        manifest_sha256: Of that Release's manifest.
        size_bytes: Of all files of the Release.
        p50_ms: Median time of a single prediction over HTTP, milliseconds; 0 where the smoke test did not pass.
        p95_ms: 95th percentile of the same.
        smoke: "passed", or why not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    tag: str
    bento_uri: str
    release_uri: str
    manifest_sha256: str
    size_bytes: int
    p50_ms: float
    p95_ms: float
    smoke: str


class _Record(BaseModel):
    """What a version's tag keeps of its package, so that an equal Release is not packaged twice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: Package
    sha256: str


def package_release(release_dir: Path, run_id: str, metric: str) -> Package:
    """Register a Release, build its Bento, try it out, and store it with the version.

    A Release that was packaged before keeps its Bento, unless that is damaged, gone or did not pass.

    Args:
        release_dir: The Release.
        run_id: The MLflow run that made it.
        metric: Name of the metric to show in the Bento's labels.

    Raises:
        WorkError: The Release is damaged, the Bento cannot be built, or MLflow refused.
    """
    release = Release.open(release_dir)
    model = release.schema.model
    version = register_release(release_dir, run_id)
    if (known := _known(model, version)) is not None:
        LOG.info("%s v%d is packaged already: the same Release, its Bento in place", model, version)
        return known
    with tempfile.TemporaryDirectory(prefix="gauntlet-package-") as folder:
        bento = build_bento(release_dir, model, version, _labels(release, metric), Path(folder))
        try:
            latency, smoke = smoke_test(bento, release), "passed"
        except WorkError as error:
            latency, smoke = Latency(0.0, 0.0), bounded(str(error), 1_000)
        release_uri, manifest_sha256 = registry.place(model, version)
        package = Package(
            model=model,
            version=version,
            tag=f"{model}:{bento_version(version)}",
            bento_uri=registry.log_file(model, version, bento, BENTO_FOLDER),
            release_uri=release_uri,
            manifest_sha256=manifest_sha256,
            size_bytes=sum(path.stat().st_size for path in release_dir.rglob("*") if path.is_file()),
            p50_ms=latency.p50_ms,
            p95_ms=latency.p95_ms,
            smoke=smoke,
        )
        record = _Record(package=package, sha256=_sum(bento))
    registry.set_tag(model, version, TAG, record.model_dump_json())
    return package


@step(enable_cache=False)
def package(release: Path, evaluation: Evaluation, test: pd.DataFrame | Partitions) -> Annotated[Package, "package"]:
    """Package the Release in `release`, its fast path proven on the test rows; see `package_release`.

    Of partitions a sample of 20,000 test rows proves it.
    """
    if isinstance(test, Partitions):
        test = sample_rows(in_turn, test, Release.open(release).config, PROVEN_ROWS, "package")
    prove_fast_path(release, test)
    return package_release(release, evaluation.mlflow_run_id, evaluation.metric)


def _known(model: str, version: int) -> Package | None:
    """The package that a version has, when its Bento passed and is still what it was."""
    try:
        record = _Record.model_validate_json(registry.version(model, version).tags.get(TAG, ""))
    except ValidationError:
        return None
    if record.package.smoke != "passed":
        return None
    with tempfile.TemporaryDirectory(prefix="gauntlet-package-") as folder:
        try:
            stored = registry.fetch_file(model, version, f"{BENTO_FOLDER}/{bento_file(model, version)}", Path(folder))
        except WorkError:
            return None
        return record.package if _sum(stored) == record.sha256 else None


def _labels(release: Release, metric: str) -> dict[str, str]:
    labels = {"release_digest": release.digest}
    if metric in release.metrics:
        labels["metric"] = f"{metric}={release.metrics[metric]:.6g}"
    if known := commit():
        labels["git_commit"] = known
    return labels


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
