"""Downloading: a file on the web whose sum is known, kept in the cache under that sum."""

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from filelock import FileLock

from models.config import UrlSource
from models.errors import DataError, shown
from stacks.home import home_dir
from stacks.terminal import terminal
from steps.variables import expand
from steps.web import AgainError, opened, retrying

LARGEST = 16 << 30
PATIENCE = 2.0


def download(source: UrlSource) -> bytes:
    """The content of a pinned file: from the cache, else fetched, and kept there once its sum is right.

    What a cut transfer left is continued by the next attempt, also in a later run, where the server can.

    Raises:
        DataError: The server does not give the file, or it is another one than the sum says.
        ConfigError: The address names a variable that is not set.
    """
    folder = home_dir() / "cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    kept, part = folder / source.sha256, folder / f"{source.sha256}.part"
    with FileLock(folder / f"{source.sha256}.lock"):
        if kept.exists():
            content = kept.read_bytes()
            if hashlib.sha256(content).hexdigest() == source.sha256:
                return content
            kept.unlink()  # damaged on the disk
        _fetch(source, part)
        part.replace(kept)
        _tag(part).unlink(missing_ok=True)
        return kept.read_bytes()


def _fetch(source: UrlSource, part: Path) -> None:
    """Bring `part` to the file with the right sum; what was continued and came out wrong is fetched anew, once."""
    where = f"source '{source.name}'"
    url = expand(source.url, f"{where}: url")
    continued = part.exists()
    if continued and _sum(part) == source.sha256:
        return
    with httpx.Client(timeout=source.timeout) as client, _bar(source.name) as show:
        found = _attempts(client, source, url, part, show)
        if found != source.sha256 and continued:
            _discard(part)
            found = _attempts(client, source, url, part, show)
    if found != source.sha256:
        _discard(part)
        raise DataError(
            f"{where}: {shown(source.url)} is another file than was pinned: its sum begins with {found[:12]}, "
            f"the YAML's sha256 with {source.sha256[:12]}; it was removed. If the new file is wanted, set its sum"
        )


def _attempts(client: httpx.Client, source: UrlSource, url: str, part: Path, show: "_Show") -> str:
    where = f"source '{source.name}'"
    try:
        retrying(source.retries)(_transfer, client, url, part, where, show)
    except AgainError as error:
        raise DataError(
            f"{where}: {error.reason}, after {source.retries + 1} attempts; what came so far is kept and continued by "
            "the next run. Check `url`, or try later"
        ) from None
    except OSError as error:
        raise DataError(f"{where}: the cache cannot be written ({error.strerror}): {part.parent}") from None
    return _sum(part)


def _transfer(client: httpx.Client, url: str, part: Path, where: str, show: "_Show") -> None:
    """Receive until the end; a cut after some progress is followed by the next request at once."""
    while True:
        before = _size(part)
        try:
            return _receive(client, url, part, where, show)
        except AgainError:
            if _size(part) <= before:
                raise


def _receive(client: httpx.Client, url: str, part: Path, where: str, show: "_Show") -> None:
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if _tag(part).exists():
            headers["If-Range"] = _tag(part).read_text(encoding="ascii")
    with opened(client, url, headers, where) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            _discard(part)
            raise AgainError(f"{shown(url)} has fewer bytes than were received")
        going_on = start > 0 and response.headers.get("content-range", "").startswith(f"bytes {start}-")
        start = start if going_on else 0
        length = response.headers.get("content-length", "")
        total = start + int(length) if length.isdigit() else None
        _check_size(total or 0, start, part, where)
        _remember(response, part)
        with part.open("ab" if going_on else "wb") as file:
            received = start
            for block in response.iter_raw():  # blocks of a size of ours would be lost with the connection
                file.write(block)
                received += len(block)
                if received > LARGEST:
                    _check_size(received, received, part, where)
                show(received, total)


def _check_size(total: int, have: int, part: Path, where: str) -> None:
    if total > LARGEST:
        _discard(part)
        raise DataError(
            f"{where}: the file has more than {LARGEST >> 30} GiB; sources are read into memory, cut it down"
        )
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise DataError(f"{where}: {(total - have) >> 20} MiB are to come and {free >> 20} MiB are free: {part.parent}")


def _remember(response: httpx.Response, part: Path) -> None:
    """Keep what tells this version of the file from a later one, for If-Range."""
    tag = response.headers.get("etag", "")
    strong = tag if tag and not tag.startswith("W/") else response.headers.get("last-modified", "")
    if strong.isascii() and strong:
        _tag(part).write_text(strong, encoding="ascii")
    else:
        _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    return part.with_suffix(".tag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_Show = Callable[[int, int | None], None]


@contextmanager
def _bar(name: str) -> Iterator[_Show]:
    """A bar on a terminal (stderr) for a transfer that takes longer than two seconds; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _received, _total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=terminal(), transient=True)
    task = bar.add_task(f"source '{name}'", total=None)
    started = time.monotonic()

    def show(received: int, total: int | None) -> None:
        bar.update(task, completed=received, total=total)
        if not bar.live.is_started and time.monotonic() - started > PATIENCE:
            bar.start()

    try:
        yield show
    finally:
        bar.stop()
