"""Archiving: what stays of a retired version, and the end of what nothing points at any more."""

import shutil
import tempfile
from pathlib import Path

from stacks import registry
from stacks.ledger import Ledger
from steps.deploy import delete_bento

ARCHIVE = "archive"
EVIDENCE = "evidence"
# Nothing that holds rows of data: neither the golden inputs nor the reference.
_KEPT = ("manifest.json", "config.yaml", "schema.json", "metrics.json", "training.json")


def clear_retired(ledger: Ledger, model: str) -> list[str]:
    """Archive the evidence of the versions that the ledger has retired and delete their files; in words, which.

    What a crash left half done is done again; a version that is through bears a tag. MLflow keeps the version with its
    tags, so that its number and its lineage hold.

    Raises:
        WorkError: MLflow refused, or the champion's Bento cannot be published.
    """
    retired = {number for number, state in ledger.standing(model).states.items() if state == "retired"}
    if not retired:
        return []
    uncleared = [version for version in registry.versions(model) if is_uncleared(version, retired)]
    for version in uncleared:
        archive(model, version.number)
        delete_bento(model, version.number)
        registry.discard(model, version.number, keep=(ARCHIVE, EVIDENCE))
        # Written last: without it all of the above is done again.
        registry.set_tag(model, version.number, registry.RETIRED_TAG, "archived")
    return [f"{model} v{version.number}: retired, its evidence archived, its files deleted" for version in uncleared]


def is_uncleared(version: registry.Version, retired: set[int]) -> bool:
    """Whether a version is among the retired ones and its files may still be there."""
    return version.number in retired and registry.RETIRED_TAG not in version.tags


def archive(model: str, version: int) -> None:
    """Copy a Release's evidence to where it outlives the Release: all that is left of one that is damaged.

    Raises:
        WorkError: MLflow refused.
    """
    if not registry.stored(model, version, registry.RELEASE_PATH):
        return
    with tempfile.TemporaryDirectory(prefix="gauntlet-archive-") as folder:
        release = registry.fetch_release(model, version, Path(folder))
        kept = Path(folder) / ARCHIVE
        kept.mkdir()
        for name in _KEPT:
            if (release / name).is_file():
                shutil.copy(release / name, kept / name)
        if (release / EVIDENCE).is_dir():
            shutil.copytree(release / EVIDENCE, kept / EVIDENCE)
        registry.log_folder(model, version, kept, ARCHIVE)
