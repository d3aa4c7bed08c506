"""Building: a Release and the service's code become a Bento, in a store apart from the user's."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bentos.release import Release
from models.config import Family
from models.errors import WorkError, bounded
from stacks.home import clone_dir
from steps.apart import apart

SERVING = ("bentoml", "fastapi", "msgspec", "numpy", "pandas", "pydantic", "pyyaml", "scikit-learn", "skops")
WEB = ("httptools", "uvloop")  # uvicorn takes them where it finds them
DATABASE = ("alembic", "filelock", "psycopg", "psycopg-binary", "sqlalchemy")  # access keys, log, outcomes
METRICS = ("prometheus-client", "psutil")
BENTO_FOLDER = "bento"  # of a version's artifacts
# What the service is made of: of the rooms below it only what it imports.
_CODE: Mapping[str, tuple[str, ...]] = {
    "bentos": ("*.py",),
    "models": ("__init__.py", "config.py", "errors.py", "judgement.py", "monitoring.py", "section.py"),
    "stacks": (
        *(
            "__init__.py",
            "alerts.py",
            "audit.py",
            "findings.py",
            "home.py",
            "keys.py",
            "ledger.py",
            "lifecycle.py",
            "logs.py",
            "served.py",
        ),
        "*.yaml",
        "migrations/**/*.py",
    ),
}
_LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.*?))?\s*\\?$")
# Runs in a process of its own, in the folder to pack: it imports that folder's `bentos`, not this clone's.
_BUILD = "import json, sys, bentoml; s = json.load(sys.stdin); bentoml.build(**s['build']).export(s['to'])"


def bento_version(version: int) -> str:
    """A version as BentoML knows it: six digits, since BentoML falls back to matching by prefix."""
    return f"{version:06d}"


def bento_file(model: str, version: int) -> str:
    """Name of a version's exported Bento: the one that BentoML itself gives."""
    return f"{model}-{bento_version(version)}.bento"


def build_bento(
    release_dir: Path, model: str, version: int, labels: Mapping[str, str], into: Path | None = None
) -> Path:
    """Build a version's Bento and export it.

    Args:
        release_dir: The Release; verified here.
        model: Name of the model and of the Bento.
        version: Its number.
        labels: What `bentoml get` shows.
        into: Folder to write to; a new temporary one when left out.

    Returns:
        `<model>-<version as six digits>.bento` in that folder.

    Raises:
        WorkError: The Release is damaged, or BentoML could not build it.
    """
    release = Release.open(release_dir)
    folder = into or Path(tempfile.mkdtemp(prefix="gauntlet-bento-"))
    target = folder / bento_file(model, version)
    with tempfile.TemporaryDirectory(prefix="gauntlet-build-") as draft:
        stage = Path(draft) / "stage"
        _stage(release_dir, stage)
        built = {
            "service": "bentos.service:Gauntlet",
            "name": model,
            "version": bento_version(version),
            "labels": dict(labels),
            "include": [*(f"{room}/**" for room in _CODE), "release/**"],
            "python": {"packages": requirements(release.family), "lock_packages": False},
            "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
            "build_ctx": str(stage),
        }
        done = subprocess.run(
            [sys.executable, "-c", _BUILD],
            input=json.dumps({"build": built, "to": str(target)}),
            cwd=stage,
            env=apart(Path(draft) / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not target.is_file():
        said = bounded(" ".join((done.stderr or done.stdout).split())[-600:], 600)
        raise WorkError(f"BentoML could not build {model}:{bento_version(version)}: … {said}")
    return target


def unpack(bento: Path, folder: Path) -> Path:
    """Unpack an exported Bento into a folder (made here) and return that folder."""
    with tarfile.open(bento) as archive:
        # As Python's manual writes it for versions before 3.11.4, which have no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(folder)
    return folder


def requirements(family: Family, lock: Path | None = None) -> list[str]:
    """What a Bento needs to serve a family, with everything that needs in turn, as pins of our lock for Linux.

    BentoML itself is left out: it adds its own pin.

    Args:
        family: XGBoost comes as `xgboost-cpu`, at the lock's xgboost version, and only with its family.
        lock: The lock; `requirements.lock` of this clone when left out.

    Raises:
        WorkError: The lock cannot be read or lacks a package.
    """
    pins = read_pins(lock or clone_dir() / "requirements.lock")
    wanted: dict[str, str] = {}
    open_names = [*SERVING, *WEB, *DATABASE, *METRICS]
    while open_names:
        name = canonicalize_name(open_names.pop())
        if name in wanted:
            continue
        if name not in pins:
            raise WorkError(f"requirements.lock has no pin of {name}, which a Bento needs; lock again")
        wanted[name] = f"{name}=={pins[name]}"
        open_names += _needs(name)
    if family == "xgboost":
        wanted["xgboost-cpu"] = f"xgboost-cpu=={pins['xgboost']}"
    return [wanted[name] for name in sorted(wanted) if name != "bentoml"]


def read_pins(lock: Path) -> dict[str, str]:
    """Name to version of a lock's pins that hold for this Python on Linux.

    Raises:
        WorkError: The lock cannot be read.
    """
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise WorkError(f"{lock.name} cannot be read; a Bento's requirements are pinned by it") from None
    pins: dict[str, str] = {}
    for line in lines:
        if (found := _PIN.match(line)) is None:
            continue
        name, version, marker = found.groups()
        if marker is None or Requirement(f"{name}; {marker}").marker.evaluate(_LINUX):  # type: ignore[union-attr]
            pins[canonicalize_name(name)] = version
    return pins


def _needs(name: str) -> list[str]:
    """Names of the packages that an installed one requires on Linux, without extras."""
    try:
        required = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []  # needed on Linux and built elsewhere: pinned, though not looked into
    parsed = [Requirement(text) for text in required]
    return [r.name for r in parsed if r.marker is None or r.marker.evaluate(_LINUX)]


def _stage(release_dir: Path, stage: Path) -> None:
    shutil.copytree(release_dir, stage / "release")
    for room, patterns in _CODE.items():
        for source in sorted(path for pattern in patterns for path in (clone_dir() / room).glob(pattern)):
            target = stage / source.relative_to(clone_dir())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
