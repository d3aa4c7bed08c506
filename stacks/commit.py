"""The commit of the code that runs."""

import subprocess
from typing import Final

from stacks.home import clone_dir

COMMIT_TAG: Final = "mlflow.source.git.commit"  # MLflow's own: its pages show it


def commit() -> str | None:
    """The clone's commit, with `-dirty` where files differ from it; None outside of a git work tree."""
    command = ["git", "-C", str(clone_dir()), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
