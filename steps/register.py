"""Registering: a Release gets its version number in MLflow."""

from collections.abc import Mapping
from pathlib import Path


def register_release(release: Path, run_id: str, tags: Mapping[str, str] | None = None) -> int:
    """Register the Release in a directory and return its version number (the one it has, if it was registered).

    Args:
        release: A Release directory.
        run_id: The MLflow run that made it.
        tags: Tags of a new version.

    Raises:
        WorkError: The Release is damaged, or MLflow refused.
    """
    raise NotImplementedError
