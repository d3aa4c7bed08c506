"""From where a Release was registered to this machine: every file checked on its way, once for all workers."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from bentos.release import MANIFEST, Release
from models.errors import WorkError, bounded

if TYPE_CHECKING:
    from stacks.handover import Crown

_LARGEST_MANIFEST: Final = 4 * 2**20
_NEEDED_SECONDS: Final = 600.0  # in which a process has loaded what it fetched


def fetch(crown: "Crown", cache: Path) -> Release:
    """The Release of a champion, from the cache where it is sound there, else through fsspec.

    The ledger's entry holds the sum of the manifest, and the manifest those of all files: what was changed since the
    promotion, here or there, is not loaded.

    Args:
        crown: The version and where it lies.
        cache: Folder for Releases; several processes may share it.

    Raises:
        WorkError: It cannot be reached, or is not what was promoted.
    """
    if crown.release_uri is None or crown.manifest_sha256 is None:
        raise WorkError(
            f"entry {crown.sequence} of the ledger does not say where version {crown.version} of '{crown.model}' lies: "
            "it was promoted by an older Gauntlet; promote it again, or serve its Bento"
        )
    folder = _folder(crown, cache)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            release = _sound(folder, crown.manifest_sha256) or _fetched(crown.release_uri, crown, folder)
            os.utime(folder)  # for `forget_others`
            return release
    except OSError as error:
        raise WorkError(f"{_named(crown)} cannot be written to {cache.name}: {error.strerror}") from None


def forget_others(staying: Sequence["Crown"], cache: Path) -> None:
    """Remove the fetched Releases of a model but for some, and but for what somebody fetched in the last ten minutes.

    Args:
        staying: Versions that may be needed; one at least.
        cache: As of `fetch`. What another process is about to load is not touched: whoever needs it later fetches it.
    """
    named = {_folder(crown, cache) for crown in staying}
    for folder in (cache / staying[0].model).glob("*-*"):
        lock = FileLock(folder.with_suffix(".lock"), timeout=0)
        with contextlib.suppress(OSError, Timeout):
            if folder in named or not folder.is_dir() or time.time() - folder.stat().st_mtime < _NEEDED_SECONDS:
                continue
            with lock:
                shutil.rmtree(folder)


def _folder(crown: "Crown", cache: Path) -> Path:
    return cache / crown.model / f"{crown.version:06d}-{(crown.manifest_sha256 or '')[:16]}"


def _sound(folder: Path, manifest_sha256: str) -> Release | None:
    try:
        if hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() != manifest_sha256:
            return None
        return Release.open(folder)
    except (OSError, WorkError):
        return None


def _fetched(uri: str, crown: "Crown", folder: Path) -> Release:
    draft = folder.with_suffix(".tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        _copy(uri, crown, draft)
        release = Release.open(draft)
        # What lay there was not sound.
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Release(folder, release.manifest)


def _copy(uri: str, crown: "Crown", target: Path) -> None:
    import fsspec

    target.mkdir(parents=True)
    try:
        files, root = fsspec.core.url_to_fs(uri)
        content = _read(files, f"{root}/{MANIFEST}", _LARGEST_MANIFEST)
        if hashlib.sha256(content).hexdigest() != crown.manifest_sha256:
            raise WorkError(f"{_named(crown)} is not loaded: {MANIFEST} is not the one that was promoted")
        (target / MANIFEST).write_bytes(content)
        for name in json.loads(content)["files"]:
            path = target / _safe(name, crown)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.cat_file(f"{root}/{name}"))
    except (WorkError, MemoryError):
        raise
    except Exception as error:
        # Each of fsspec's file systems raises errors of its own; their texts may hold addresses with credentials.
        said = f"{type(error).__name__} ({bounded(_scheme(uri), 20)})"
        raise WorkError(f"{_named(crown)} cannot be fetched from where it was registered: {said}") from None


def _read(files: Any, path: str, largest: int) -> bytes:
    with files.open(path, "rb") as file:
        content: bytes = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError
    return content


def _safe(name: str, crown: "Crown") -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise WorkError(f"{_named(crown)} is not loaded: its manifest names a file outside of it")
    return name


def _scheme(uri: str) -> str:
    found = re.match(r"([a-z0-9+.-]+):", uri)
    return found[1] if found else "file"


def _named(crown: "Crown") -> str:
    return f"version {crown.version} of '{crown.model}'"
