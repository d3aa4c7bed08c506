"""Restoring: a champion whose version somebody deleted from MLflow is registered again from its published Bento."""

from models.errors import WorkError
from stacks import registry
from stacks.ledger import Entry, open_ledger
from steps.build import bento_version
from steps.deploy import store_dir
from steps.label import label_of
from steps.package import package_release
from steps.promote import repair


def is_lost(model: str, to: int | None) -> bool:
    """Whether a rollback to `to` means the champion itself, and MLflow has no such version any more."""
    standing = open_ledger().standing(model)
    meant = to == standing.champion or (to is None and standing.previous is None)
    if standing.champion is None or not meant:
        return False
    return standing.champion not in {version.number for version in registry.versions(model)}


def restore(model: str, *, why: str = "", actor: str | None = None) -> Entry:
    """Make the lost champion's Release the champion again, under a new number: MLflow gives none twice.

    The Bento of the new number is built, served and timed anew; the ledger keeps the old judgement with it, and retires
    the lost number.

    Returns:
        The ledger's entry.

    Raises:
        WorkError: The Bento is gone too, damaged or does not serve; nothing was promoted.
    """
    ledger = open_ledger()
    standing = ledger.standing(model)
    lost = standing.champion
    if lost is None:
        raise WorkError(f"model '{model}' has no champion; train one first")
    release = store_dir() / model / bento_version(lost) / "src" / "release"
    if not release.is_dir():
        raise WorkError(
            f"v{lost} of '{model}' is neither in MLflow nor in the BentoML store: bring either back from a backup"
        )
    judged = [entry for entry in ledger.history(model) if entry.version == lost and "verdict" in entry.payload][-1]
    package = package_release(release, judged.payload.get("mlflow_run_id") or "", "")
    if package.smoke != "passed":
        raise WorkError(f"the Release of v{lost} of '{model}' does not serve any more: {package.smoke}")
    reason = f"the Release of v{lost}, which was deleted from MLflow, registered again"
    verdict = {"version": package.version, "champion": package.version, "former": lost, "reason": reason}
    payload = {**judged.payload, "verdict": {**judged.payload["verdict"], **verdict}, "bento": package.tag}
    payload |= {
        "semver": label_of(model, package.version),
        "release_uri": package.release_uri,
        "manifest_sha256": package.manifest_sha256,
    }
    entry = ledger.append(
        "promote", model, package.version, why=why, actor=actor, payload=payload, expect_champion=lost
    )
    ledger.append(
        "retire", model, lost, why=f"deleted from MLflow; v{package.version} is the same Release", actor=actor
    )
    repair(model)
    return entry
