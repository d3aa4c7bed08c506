"""Registering: a Release gets its version number in MLflow, where anyone can load it."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import bentos
import models
from bentos.release import Release
from bentos.schema import Schema
from stacks import registry, runs
from steps.label import label_tags

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

EXAMPLE_ROWS = 5
_SCRIPT = Path(__file__).with_name("mlflow_model.py")
_REQUIRED = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "scikit-learn", "skops", "threadpoolctl")


def register_release(release: Path, run_id: str, tags: Mapping[str, str] | None = None) -> int:
    """Register the Release in a directory and return its version number (the one it has, if it was registered).

    Args:
        release: A Release directory.
        run_id: The MLflow run that made it.
        tags: Tags of a new version.

    Raises:
        WorkError: The Release is damaged, or MLflow refused.
    """
    opened = Release.open(release)
    with _packages() as code:
        loader = registry.Loader(
            script=_SCRIPT,
            code=code,
            signature=signature_of(opened.schema, abstains=opened.config.serving.abstain_below is not None),
            example=pd.DataFrame([row.inputs for row in opened.golden[:EXAMPLE_ROWS]]),
            requirements=requirements_of(opened),
        )
        model = opened.config.name
        known = runs.same_run(model, run_id)
        return registry.register(
            model,
            release,
            digest=opened.digest,
            run_id=known,
            loader=loader,
            tags=lambda earlier: {**(tags or {}), **label_tags(opened, earlier)},
        )


def signature_of(schema: Schema, *, abstains: bool = False) -> "ModelSignature":
    """MLflow's signature of a Release: raw columns in, prediction and probabilities out.

    Inputs are of any type, because the Release types them itself and MLflow's own check is narrower than the service:
    it refuses whole numbers where a column is declared as double, and a column of nothing but nulls.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map
    from mlflow.types.schema import Schema as Columns

    inputs = [ColSpec(AnyType(), name, required=column.missing == 0) for name, column in schema.inputs.items()]
    if schema.task == "regression":
        return ModelSignature(Columns(inputs), Columns([ColSpec(DataType.double, "prediction")]))
    answers = [ColSpec(DataType.string, "prediction", required=not abstains)]
    answers += [ColSpec(DataType.boolean, "abstained")] if abstains else []
    answers += [ColSpec(Map(DataType.double), "probabilities")]
    return ModelSignature(Columns(inputs), Columns(answers))


def requirements_of(release: Release) -> tuple[str, ...]:
    """Pins of what loading a Release needs, at the versions it was made with."""
    names = [*_REQUIRED, *(["xgboost"] if release.family == "xgboost" else [])]
    return tuple(f"{name}=={metadata.version(name)}" for name in names)


@contextmanager
def _packages() -> Iterator[tuple[Path, ...]]:
    """Copies of the packages that the script imports, Python files only."""
    with tempfile.TemporaryDirectory() as folder:
        yield tuple(_copied(package, Path(folder)) for package in (bentos, models))


def _copied(package: Any, folder: Path) -> Path:
    source = Path(package.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.yaml", "*.json", "*.md", "service.py", "app.py")
    return Path(shutil.copytree(source, folder / source.name, ignore=ignored))
