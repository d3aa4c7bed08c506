"""A template of Prefect's database: empty, at its newest revision, with which a new home begins.

Prefect comes to that revision by over a hundred migrations, ten seconds of its server's first start in a home. The
installation makes the template once (`python -m stacks.orchestrator.template`); where there is none, or it is of
another Prefect, the server migrates as ever.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ELSEWHERE = ("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")


def template_path() -> Path:
    """Where the template of the installed Prefect lies: in this interpreter's environment, which it ends with."""
    return Path(sys.prefix) / "share" / "gauntlet" / f"prefect-{metadata.version('prefect')}.db"


def begin_with_template(prefect_home: Path) -> None:
    """Give a home that has no database a copy of the template, unless the user's variables name another database."""
    database, template = prefect_home / "prefect.db", template_path()
    if database.exists() or not template.is_file() or any(name.startswith(ELSEWHERE) for name in os.environ):
        return
    prefect_home.mkdir(parents=True, exist_ok=True)
    draft = prefect_home / f"prefect.{os.getpid()}.tmp"
    try:
        shutil.copyfile(template, draft)
        # A server that somebody else has started meanwhile keeps its own.
        with contextlib.suppress(FileExistsError):
            os.link(draft, database)
    finally:
        draft.unlink(missing_ok=True)


def make_template() -> Path:
    """Have Prefect migrate an empty database and keep it as the template.

    Raises:
        RuntimeError: Prefect could not; the text ends with what it said.
    """
    target = template_path()
    with tempfile.TemporaryDirectory(prefix="gauntlet-template-") as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
            env={**kept, "PREFECT_HOME": folder},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"Prefect could not make its database: {(done.stdout + done.stderr)[-800:]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}.tmp")
        # One file, whatever its log still held.
        with contextlib.closing(sqlite3.connect(Path(folder) / "prefect.db")) as database:
            database.execute("VACUUM INTO ?", (str(draft),))
        draft.replace(target)
    return target


if __name__ == "__main__":
    make_template()
