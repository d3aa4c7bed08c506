"""Versions in the real MLflow store and Bentos in real BentoML stores, without training anything."""

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from stacks import registry
from stacks.home import clone_dir
from steps.build import BENTO_FOLDER, bento_file, bento_version
from steps.evaluate import Evaluation
from steps.package import Package
from steps.paired import Paired

SERVICE = """
from pathlib import Path

import bentoml


@bentoml.service(http={"host": "127.0.0.1"}, workers=1)
class Tiny:
    @bentoml.api
    def version(self) -> str:
        return Path(__file__).with_name("version.txt").read_text()
"""
BUILD = """
import sys

import bentoml

context, target = sys.argv[1:]
options = {"include": ["service.py", "version.txt"], "python": {"lock_packages": False}}
bentoml.build("service:Tiny", name="template", version="000000", build_ctx=context, **options)
bentoml.bentos.export_bento("template:000000", target)
"""


@lru_cache
def _template() -> Path:
    """A tiny Bento that BentoML built, unpacked; the others are it under another tag."""
    folder = Path(tempfile.mkdtemp(prefix="gauntlet-test-bento-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "context").mkdir()
    (folder / "context" / "service.py").write_text(SERVICE)
    (folder / "context" / "version.txt").write_text("")
    command = [sys.executable, "-c", BUILD, str(folder / "context"), str(folder / "template.bento")]
    env = {**os.environ, "BENTOML_HOME": str(folder / "built")}
    subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True)
    with tarfile.open(folder / "template.bento") as archive:
        archive.extractall(folder / "template", filter="data")
    return folder / "template"


@lru_cache
def small_release() -> Path:
    """A small Release that was really fitted; every version of an arena stores a copy of it."""
    # Scripts that only decide need none of what this imports.
    from tests.bentos.samples import write

    folder = Path(tempfile.mkdtemp(prefix="gauntlet-test-release-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write(folder / "release", "houses", "linear_regression").directory


def start_script(folder: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script in a process of its own, and wait until it has imported what it needs and says "ready"."""
    # A file: ZenML's steps cannot be imported where the main module has none.
    script = folder / f"script_{uuid.uuid4().hex}.py"
    script.write_text(text)
    env = {**os.environ, "PYTHONPATH": str(clone_dir())}
    command = [sys.executable, str(script), *arguments]
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def say(process: subprocess.Popen[str], line: str = "") -> None:
    """Write a line to a script's standard input."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def config_of(name: str = "wine", **changes: Any) -> ModelConfig:
    """A small configuration; `changes` replace its top-level keys."""
    base = {
        "name": name,
        "target": {"column": "kind", "labels": ["a", "b"]},
        "sources": [{"name": "own", "kind": "sklearn", "dataset": "wine"}],
        "columns": {"x": {"type": "number"}},
        "gates": {"accuracy": {"min": 0.8}, "quality_score": {"min": 80}},
    }
    return ModelConfig.model_validate_json(json.dumps({**base, **changes}))


def evaluation_of(model: str = "wine", **changes: Any) -> Evaluation:
    """A challenger with accuracy 0.9 and no champion; `changes` replace fields."""
    base: dict[str, Any] = {
        "model": model,
        "release_digest": "d" * 64,
        "data_digest": "e" * 64,
        "metric": "accuracy",
        "greater_is_better": True,
        "challenger": {"accuracy": 0.9},
        "rows": 0,
        "test_rows": 100,
        "dummy": 0.4,
        "linear": 0.85,
        "quality_score": 100.0,
        "mlflow_run_id": "",
    }
    return Evaluation.model_validate({**base, **changes})


def against(standing: int, old: float, new: float, model: str = "wine", **changes: Any) -> Evaluation:
    """An evaluation of a challenger (`new`) and the champion (`old`) on 90 rows, the difference known to a tenth."""
    metric = changes.get("metric", "accuracy")
    gain = new - old if changes.get("greater_is_better", True) else old - new
    compared: dict[str, Any] = {
        "rows": 90,
        "paired": paired_of(gain, gain - abs(gain) / 10, metric),
        "champion": {metric: old},
        "challenger_compared": {metric: new},
        "challenger": {metric: new},
    }
    return evaluation_of(model, champion_version=standing, **{**compared, **changes})


def paired_of(gain: float, low: float, metric: str = "accuracy", p: float | None = 0.01) -> Paired:
    """The paired difference on 90 rows."""
    return Paired(metric=metric, estimate=gain, low=low, high=2 * gain - low, mcnemar_p=p, rows=90, resamples=1000)


def package_of(version: int, model: str = "wine", **changes: Any) -> Package:
    """A package whose smoke test passed; `changes` replace fields."""
    base: dict[str, Any] = {
        "model": model,
        "version": version,
        "tag": f"{model}:{bento_version(version)}",
        "bento_uri": "",
        "release_uri": "",
        "manifest_sha256": "",
        "size_bytes": 2_000_000,
        "p50_ms": 2.0,
        "p95_ms": 5.0,
        "smoke": "passed",
    }
    return Package.model_validate({**base, **changes})


@dataclass
class Arena:
    """A model of its own in the session's MLflow store, and a folder to build Bentos in."""

    folder: Path
    env: dict[str, str]
    model: str = field(default_factory=lambda: f"m{uuid.uuid4().hex[:10]}")
    count: int = 0

    def add_versions(self, count: int, release: Path | None = None) -> None:
        """Register versions, each with the same Release and a tiny Bento that answers its own number."""
        numbers = range(self.count + 1, self.count + count + 1)
        store = registry.client()
        if not self.count:
            store.create_registered_model(self.model)
        for number in numbers:
            self._build(bento_version(number))
            run = store.create_run(experiment_id="0")
            logged = store.create_logged_model("0", name=self.model, source_run_id=run.info.run_id)
            store.log_model_artifacts(logged.model_id, str(release or small_release()), registry.RELEASE_PATH)
            store.finalize_logged_model(logged.model_id, "READY")
            created = store.create_model_version(self.model, f"models:/{logged.model_id}", run_id=run.info.run_id)
            assert int(created.version) == number
            registry.log_file(self.model, number, self.folder / bento_file(self.model, number), BENTO_FOLDER)
        self.count += count

    def _build(self, version: str) -> None:
        bento = shutil.copytree(_template(), self.folder / "built")
        (bento / "src" / "version.txt").write_text(version)
        info = (bento / "bento.yaml").read_text()
        created = f"creation_time: '{datetime.now(UTC).isoformat()}'"
        for line, new in (
            ("name", f"name: {self.model}"),
            ("version", f"version: '{version}'"),
            ("creation_time", created),
        ):
            info, count = re.subn(rf"(?m)^{line}: .*$", new, info)
            assert count == 1
        (bento / "bento.yaml").write_text(info)
        with tarfile.open(self.folder / f"{self.model}-{version}.bento", "w:xz", preset=0) as archive:
            archive.add(bento, ".")
        shutil.rmtree(bento)

    def bentoml(self, *arguments: str) -> str:
        """Run the user's own `bentoml` command on the session's store."""
        command = [sys.executable, "-m", "bentoml", *arguments]
        return subprocess.run(command, env=self.env, cwd=clone_dir(), check=True, capture_output=True, text=True).stdout
