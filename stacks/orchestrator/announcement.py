"""A server that was started for everybody (`make up`) is announced to every tool of its Prefect home.

Its address is put into the home's active Prefect profile, where `prefect` and this flavor look. Who announced it holds
a lock for as long as it is there; the kernel gives the lock up when that process ends in whatever way, and the next
one to look takes a dead announcement back.
"""

import contextlib
import fcntl
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DEFAULT_PROFILES = 'active = "ephemeral"\n\n[profiles.ephemeral]\nPREFECT_SERVER_EPHEMERAL_ENABLED = "true"\n'


class AlreadyAnnounced(RuntimeError):
    """Somebody else's server is announced in this home; the text is its address."""


@contextmanager
def claimed(prefect_home: Path) -> Iterator[None]:
    """Be the one whose server may be announced in a home, and take back what a dead one left.

    Raises:
        AlreadyAnnounced: Another process is that one.
    """
    prefect_home.mkdir(parents=True, exist_ok=True)
    lock = _lock(prefect_home)
    if lock is None:
        raise AlreadyAnnounced(announced_url(prefect_home) or "an address that is not known yet")
    with lock:
        _withdraw(prefect_home)
        try:
            yield
        finally:
            _withdraw(prefect_home)


def announce(prefect_home: Path, url: str) -> bool:
    """Put an API address into the active profile; call it inside `claimed`.

    Returns:
        False when the user's profile names an address already, which is left as it is.
    """
    path = _profiles(prefect_home)
    text = path.read_text() if path.exists() else DEFAULT_PROFILES
    profiles = tomllib.loads(text)
    active = profiles.get("active") or "ephemeral"
    section = profiles.get("profiles", {}).get(active)
    if section and section.get("PREFECT_API_URL"):
        return False
    head = f"[profiles.{active}]\n"
    if head not in text:
        text = f"{text.rstrip()}\n\n{head}"
    record = {"url": url, "made": not path.exists()}
    _replace(_record(prefect_home), json.dumps(record))
    _replace(path, text.replace(head, f'{head}PREFECT_API_URL = "{url}"\n', 1))
    return True


def announced_url(prefect_home: Path) -> str | None:
    """The address that is announced in a home, by a process that may be dead."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(_record(prefect_home).read_text())["url"])
    return None


def withdraw_dead(prefect_home: Path) -> None:
    """Take an announcement back whose process has ended without doing so."""
    if _record(prefect_home).exists() and (lock := _lock(prefect_home)) is not None:
        with lock:
            _withdraw(prefect_home)


def _withdraw(prefect_home: Path) -> None:
    url = announced_url(prefect_home)
    record, path = _record(prefect_home), _profiles(prefect_home)
    if url and path.exists():
        text = re.sub(rf'^PREFECT_API_URL *= *"{re.escape(url)}" *\n', "", path.read_text(), flags=re.MULTILINE)
        if text == DEFAULT_PROFILES and json.loads(record.read_text()).get("made"):
            path.unlink()
        else:
            _replace(path, text)
    record.unlink(missing_ok=True)


def _lock(prefect_home: Path) -> IO[str] | None:
    file = (prefect_home / "gauntlet-up.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _record(prefect_home: Path) -> Path:
    return prefect_home / "gauntlet-up.json"


def _profiles(prefect_home: Path) -> Path:
    return prefect_home / "profiles.toml"


def _replace(path: Path, text: str) -> None:
    draft = path.with_suffix(".up.tmp")
    draft.write_text(text)
    draft.replace(path)
