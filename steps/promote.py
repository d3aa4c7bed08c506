"""Promoting: a verdict is written in one order (ledger, aliases, evidence, Bento), and repaired in the same."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

from zenml import get_step_context, step

from models.config import ModelConfig
from models.errors import GauntletError, WorkError, bounded
from stacks import registry
from stacks.ledger import Action, Conflict, Entry, Ledger, current_actor, open_ledger
from stacks.lifecycle import Standing, require, standing
from steps.approve import Asked, settle
from steps.archive import clear_retired
from steps.caching import parse_config
from steps.card import write_card
from steps.deploy import publish, stage
from steps.evaluate import Evaluation
from steps.label import label_of
from steps.package import Package
from steps.refuse import supersede
from steps.sound import require_sound
from steps.verdict import Decision, Gate, Verdict, judge, require_gates

__all__ = [
    "Decision",
    "Gate",
    "Verdict",
    "decide",
    "judge",
    "promote",
    "repair",
    "require_gates",
    "rollback",
    "wanted_aliases",
]

LOG = logging.getLogger(__name__)
STATE_TAG: Final = "gauntlet.state"
REASON_TAG: Final = "gauntlet.reason"
ENTRY_TAG: Final = "gauntlet.entry"
EVIDENCE_FOLDER: Final = "evidence"
ATTEMPTS: Final = 20
ACTIONS: Final[Mapping[Decision, Action]] = {
    "promoted": "promote",
    "kept": "keep",
    "rejected": "reject",
    "pending": "pending",
}


def decide(
    config: ModelConfig,
    evaluation: Evaluation,
    package: Package,
    *,
    request: str | None = None,
    **asked: Any,
) -> Verdict:
    """Judge a challenger against the champion of this moment and write the verdict.

    The ledger takes it only if the champion is still the one judged against; else it is judged again. Aliases, tags
    and evidence follow. `publish` brings the Bento; `repair` whatever a crash left out.

    Args:
        config: The model's configuration.
        evaluation: What the challenger is worth.
        package: Its Bento.
        request: What this is done for; asked twice, the verdict of the first time is returned.
        asked: Fields of `steps.approve.Asked`: who asks, why, and whether by hand.

    Raises:
        Refused: Asked for by hand: a rule or a gate stands against it.
        ConfigError: A gate to override does not exist, or `GAUNTLET_KEY` is no admin's.
        WorkError: The ledger or the registry cannot be reached.
    """
    ledger = open_ledger()
    by = Asked(**{**asked, "actor": asked.get("actor") or current_actor(ledger)})
    verdict = _recorded(ledger, config.name, request) if request else None
    if verdict is None:
        verdict = _record(ledger, config, evaluation, package, by, request)
    if verdict.decision in ("pending", "promoted"):
        supersede(ledger, config.name, verdict.version, verdict.sequence, by.actor)
    _mirror(ledger, config.name)
    return verdict


def repair(model: str | None = None) -> tuple[str, ...]:
    """Bring aliases, tags, evidence, retired versions and `<model>:latest` back to what the ledger says.

    Cheap when nothing is wrong; every command that changes something calls it first, as a crash may have come between
    two writes of the last one.

    Args:
        model: The one to repair; all that the ledger knows when not given.

    Returns:
        What was put right, in words.

    Raises:
        WorkError: Something could not be put right; whatever could be, was.
    """
    ledger = open_ledger()
    done: list[str] = []
    failed: list[str] = []
    for name in [model] if model else ledger.models():
        for part in (_mirror, clear_retired, _publish):
            try:
                done += part(ledger, name)
            except GauntletError as error:
                failed.append(f"{name}: {error}")
    if failed:
        raise WorkError(f"the ledger's state could not be restored everywhere: {'; '.join(failed)}")
    return tuple(done)


def wanted_aliases(model: str, standing: Standing, versions: Sequence[registry.Version]) -> dict[str, int | None]:
    """The aliases champion, previous and challenger as the ledger has them.

    A previous champion or a challenger that somebody deleted from MLflow has no alias; nothing else depends on it.

    Raises:
        WorkError: MLflow has no such champion.
    """
    there = {version.number for version in versions}
    if standing.champion is not None and standing.champion not in there:
        raise WorkError(
            f"the champion of '{model}', v{standing.champion}, is not in MLflow any more (there is: "
            f"{', '.join(f'v{number}' for number in sorted(there)[-20:]) or 'nothing'}); "
            f"`gauntlet rollback {model} --to {standing.champion}` registers it again from its Bento, "
            "`--to VERSION` goes back to another"
        )
    names = {registry.CHAMPION: standing.champion}
    names |= {registry.PREVIOUS: standing.previous, registry.CHALLENGER: standing.challenger}
    return {alias: number if number in there else None for alias, number in names.items()}


def rollback(
    model: str, to: int | None = None, *, why: str = "", actor: str | None = None, expect_champion: int | None = None
) -> Entry:
    """Make an earlier champion the champion again: ledger, aliases, `<model>:latest`.

    Its stored Release and its Bento are verified first.

    Args:
        model: The model.
        to: Its version; the one before the present champion when not given.
        why: The reason in a person's words.
        actor: Who does it; the user of the operating system when not given.
        expect_champion: The champion that this was decided about; whichever there is when not given.

    Returns:
        The ledger's entry.

    Raises:
        Conflict: The champion is another one by now; nothing was changed.
        WorkError: There is nothing to roll back to, or the version cannot be served any more; nothing was changed.
    """
    ledger = open_ledger()
    if expect_champion is not None and (champion := ledger.champion(model)) != expect_champion:
        raise Conflict(
            f"v{expect_champion} of '{model}' was to be rolled back, but the champion is v{champion} by now; nothing "
            "was changed"
        )
    champion, target = _target(ledger, model, to)
    require_sound(model, target, ledger.history(model))
    stage(model, target)
    payload, expected = {"from": champion}, expect_champion or champion
    entry = ledger.append("rollback", model, target, why=why, actor=actor, payload=payload, expect_champion=expected)
    repair(model)
    return entry


def _target(ledger: Ledger, model: str, to: int | None) -> tuple[int, int]:
    """The present champion and the version to roll back to."""
    standing = ledger.standing(model)
    champion = standing.champion
    if champion is None:
        raise WorkError(f"model '{model}' has no champion yet: there is nothing to roll back; train one first")
    target = standing.previous if to is None else to
    if target is None:
        raise WorkError(f"v{champion} of '{model}' has no champion before it: there is nothing to roll back to")
    require("rollback", standing, model, target)
    return champion, target


def _recorded(ledger: Ledger, model: str, request: str) -> Verdict | None:
    for entry in reversed(ledger.history(model)):
        if entry.payload.get("request") == request and "verdict" in entry.payload:
            return _verdict(entry)
    return None


def _verdict(entry: Entry) -> Verdict:
    return Verdict.model_validate({**entry.payload["verdict"], "sequence": entry.sequence})


def _record(
    ledger: Ledger,
    config: ModelConfig,
    evaluation: Evaluation,
    package: Package,
    asked: Asked,
    request: str | None,
) -> Verdict:
    for _ in range(ATTEMPTS):
        champion = ledger.champion(config.name)
        verdict = judge(config, evaluation, package, champion)
        verdict = settle(config, verdict, asked, ledger.history(config.name), datetime.now(UTC))
        try:
            entry = ledger.append(
                ACTIONS[verdict.decision],
                config.name,
                verdict.version,
                why=asked.why,
                actor=asked.actor,
                payload=_payload(config, verdict, evaluation, package, asked, request),
                expect_champion=champion,
            )
        except Conflict:
            LOG.info("the champion of %s changed while v%d was judged: judging again", config.name, verdict.version)
            continue
        return verdict.model_copy(update={"sequence": entry.sequence})
    raise WorkError(f"the champion of '{config.name}' changed {ATTEMPTS} times while v{package.version} was judged")


def _payload(
    config: ModelConfig,
    verdict: Verdict,
    evaluation: Evaluation,
    package: Package,
    asked: Asked,
    request: str | None,
) -> dict[str, Any]:
    """What the ledger keeps of a verdict: figures and digests, no row of data."""
    waits: dict[str, Any] = {}
    if verdict.decision == "pending":
        waits = {"waits_seconds": config.promotion.approval.period.total_seconds(), "flow_run": asked.flow_run}
    return {
        **waits,
        "by_hand": asked.by_hand,
        "settings": list(asked.settings),
        "overridden": [gate.name for gate in verdict.gates if gate.overridden],
        "verdict": verdict.model_dump(mode="json", exclude={"sequence"}),
        "semver": label_of(package.model, package.version),
        "release_digest": evaluation.release_digest,
        "data_digest": evaluation.data_digest,
        "mlflow_run_id": evaluation.mlflow_run_id,
        # NaN has no JSON: a figure that could not be computed is left out.
        "metrics": {name: value for name, value in evaluation.challenger.items() if abs(value) < float("inf")},
        "bento": package.tag,
        "release_uri": package.release_uri,
        "manifest_sha256": package.manifest_sha256,
        "request": request,
    }


def _mirror(ledger: Ledger, model: str) -> list[str]:
    """Make MLflow's aliases, states and evidence those of the ledger; what had to be written, in words."""
    done: list[str] = []
    while True:
        entries = ledger.history(model)
        if not entries:
            return done
        stands = standing(entries)
        versions = registry.versions(model)
        if registry.mirror(model, **wanted_aliases(model, stands, versions)):
            done.append(f"{model}: aliases")
        for version in versions:
            if state := stands.states.get(version.number):
                own = [entry for entry in entries if entry.version == version.number and "verdict" in entry.payload]
                done += _mirror_version(version, own, state)
        # Whoever wrote meanwhile may have been overtaken by our older view: look again, the last one is right.
        if ledger.tip(model) == stands.sequence:
            return done


def _mirror_version(version: registry.Version, verdicts: Sequence[Entry], state: str) -> list[str]:
    done: list[str] = []
    if version.tags.get(STATE_TAG) != state:
        registry.set_tag(version.model, version.number, STATE_TAG, state)
        done.append(f"{version.model} v{version.number}: {state}")
    told = version.tags.get(ENTRY_TAG, "")
    for entry in verdicts:
        if entry.sequence <= (int(told) if told.isdecimal() else 0):
            continue
        _log_evidence(version, entry)
        # Written last: without it all of the above is done again.
        registry.set_tag(version.model, version.number, ENTRY_TAG, str(entry.sequence))
        done.append(f"{version.model} v{version.number}: evidence of entry {entry.sequence}")
    return done


def _log_evidence(version: registry.Version, entry: Entry) -> None:
    verdict = _verdict(entry)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"verdict-{verdict.sequence:06d}.json"
        path.write_text(json.dumps(verdict.model_dump(mode="json"), indent=1), encoding="utf-8")
        paths = (path, *write_card(entry, Path(folder)))
        registry.log_files(version.model, version.number, paths, EVIDENCE_FOLDER)
    registry.set_tag(version.model, version.number, REASON_TAG, bounded(f"{verdict.decision}: {verdict.reason}", 1_000))


def _publish(_ledger: Ledger, model: str) -> list[str]:
    published = publish(model)
    return [f"{model}: {published.tag} is latest"] if published.changed else []


@step(enable_cache=False)
def promote(config: str, evaluation: Evaluation, package: Package, said: str) -> Annotated[Verdict, "verdict"]:
    """Judge the challenger and write the verdict; a retry of the same run gets the verdict it already has.

    `said` is a `parameter` of a `steps.approve.Asked`: texts of people, who may write what ZenML takes for a variable.
    """
    request = str(get_step_context().pipeline_run.id)
    verdict = decide(parse_config(config), evaluation, package, **json.loads(said), request=request)
    LOG.info("%s v%d: %s (%s)", verdict.model, verdict.version, verdict.decision, verdict.reason)
    return verdict
