"""Checking that a stored version is still what it was when it was judged."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bentos.release import MANIFEST, Release
from models.errors import WorkError
from stacks import registry
from stacks.ledger import Entry


def require_sound(model: str, version: int, history: Sequence[Entry]) -> None:
    """Refuse a version whose Release, as MLflow stores it, is damaged, gone or another than the ledger says.

    Args:
        model: The model.
        version: Its version.
        history: The model's entries; those of before services followed the ledger name no manifest.

    Raises:
        WorkError: Says what is wrong with it.
    """
    sums = [entry.payload.get("manifest_sha256") for entry in history if entry.version == version]
    judged = next((digest for digest in reversed(sums) if digest), None)
    with tempfile.TemporaryDirectory(prefix="gauntlet-sound-") as folder:
        try:
            release = Release.open(registry.fetch_release(model, version, Path(folder)))
        except WorkError as error:
            raise WorkError(f"v{version} of '{model}' cannot be served any more: {error}") from None
        found = hashlib.sha256((release.directory / MANIFEST).read_bytes()).hexdigest()
    if judged is not None and found != judged:
        raise WorkError(
            f"v{version} of '{model}' cannot be served any more: its manifest is not the one that the ledger names"
        )
