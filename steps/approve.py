"""Approving: what people have to say about a verdict, and who may not say it. Nothing here writes anything."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig
from models.errors import ConfigError, WorkError, bounded, guess
from models.judgement import Promotion
from stacks.ledger import Entry
from stacks.lifecycle import require, standing
from steps.verdict import Gate, Verdict

KNOWN_BY_KEY = "key:"
IMPROVEMENT = "improvement"
SMOKE = "smoke_test"


class Refused(WorkError):
    """The version may not become champion this way; nothing was changed."""


class Asked(BaseModel):
    """What a verdict is asked for with.

    Attributes:
        why: The reason in a person's words.
        actor: Who asks: `key:<name>` or `unverified:<user>`; the ledger's `current_actor` when None.
        by_hand: Whether a person asks for this version to be champion; else it is what a training run came to.
        overrides: Names of gates that may fail.
        settings: What `--set` changed of gates and promotion, for the ledger.
        flow_run: Prefect's run that suspends while the challenger waits; None where nothing does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    why: str = ""
    actor: str | None = None
    by_hand: bool = False
    overrides: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    flow_run: str | None = None


def settle(config: ModelConfig, verdict: Verdict, asked: Asked, entries: Sequence[Entry], now: datetime) -> Verdict:
    """What becomes of a judged challenger, given who asks and what the model's YAML leaves to people.

    Args:
        config: The model's configuration.
        verdict: What the gates said.
        asked: Who asks, and for what.
        entries: The model's ledger, oldest first.
        now: The moment of the decision.

    Raises:
        WorkError: Asked for by hand: its state, a rule or a gate stands against it (the latter two as `Refused`).
        ConfigError: A gate to override does not exist.
    """
    if not asked.by_hand:
        return _left_to_people(config.promotion, verdict)
    _require_known(verdict, asked.overrides)
    _require_free(verdict, entries, now)
    if config.promotion.four_eyes:
        _require_other_eyes(verdict, asked.actor or "", entries)
    return _promoted_by_hand(verdict, asked.overrides)


def trainers(entries: Sequence[Entry], version: int) -> frozenset[str]:
    """Everybody who ran a training that came to this version."""
    own = (entry for entry in entries if entry.version == version and "verdict" in entry.payload)
    return frozenset(entry.actor for entry in own if not entry.payload.get("by_hand"))


def _left_to_people(promotion: Promotion, verdict: Verdict) -> Verdict:
    """A promotion that a person has to agree to becomes `pending`; every other verdict stays."""
    warnings = [gate.name for gate in verdict.gates if gate.verdict == "failed" and not gate.blocking]
    rule = ""
    if promotion.four_eyes:
        rule = "promotion.four_eyes: who ran the training may not promote"
    elif promotion.approval.mode == "manual":
        rule = "promotion.approval is manual"
    elif promotion.approval.mode == "on_warning" and warnings:
        rule = f"promotion.approval is on_warning, and {', '.join(warnings)} failed"
    if verdict.decision != "promoted" or not rule:
        return verdict
    said = f"v{verdict.version} waits for a person, {promotion.approval.expires} at most ({rule}); {verdict.reason}"
    return verdict.model_copy(update={"decision": "pending", "champion": verdict.former, "reason": bounded(said)})


def _require_known(verdict: Verdict, overrides: Sequence[str]) -> None:
    """Refuse the name of a gate that the version was not judged by."""
    names = [gate.name for gate in verdict.gates]
    for name in overrides:
        if name not in names:
            raise ConfigError(f"--override: v{verdict.version} has no gate '{name[:80]}'{guess(name[:80], names)}")


def _require_free(verdict: Verdict, entries: Sequence[Entry], now: datetime) -> None:
    """Refuse what is champion already, and a challenger whose time to wait is over."""
    name = f"v{verdict.version} of '{verdict.model}'"
    stands = standing(entries)
    if (last := stands.latest.get(verdict.version)) is None:
        return  # judged for the first time, just now
    require("promote", stands, verdict.model, verdict.version)
    if last.waits_until and last.waits_until <= now:
        raise Refused(
            f"{name} waited for a person until {last.waits_until:%Y-%m-%d %H:%M} UTC and has expired "
            f"(promotion.approval.expires); `gauntlet run {verdict.model}` judges a challenger anew"
        )


def _require_other_eyes(verdict: Verdict, actor: str, entries: Sequence[Entry]) -> None:
    """The rule of four eyes: a key's owner, and another one than who ran the training."""
    name = f"v{verdict.version} of '{verdict.model}'"
    if not actor.startswith(KNOWN_BY_KEY):
        raise Refused(
            f"promotion.four_eyes: {actor or 'nobody'} is not known by a key and may not promote {name}; "
            "set GAUNTLET_KEY to an admin's key"
        )
    if actor in trainers(entries, verdict.version):
        raise Refused(f"promotion.four_eyes: {actor} ran the training of {name}; somebody else has to promote it")


def _promoted_by_hand(verdict: Verdict, overrides: Sequence[str]) -> Verdict:
    """The verdict as a person's promotion, its overridden gates marked."""
    against = [gate for gate in verdict.gates if _stops(gate, verdict)]
    if broken := [gate.reason for gate in against if gate.name == SMOKE]:
        raise Refused(
            f"v{verdict.version} of '{verdict.model}' does not serve, and no override changes that: {broken[0]}; "
            f"`gauntlet run {verdict.model}` packages it anew"
        )
    if left := [gate for gate in against if gate.name not in overrides]:
        flags = " ".join(f"--override {gate.name}" for gate in left)
        said = "; ".join(f"{gate.name}: {bounded(gate.reason, 300)}" for gate in left)
        raise Refused(
            f"v{verdict.version} of '{verdict.model}' is not promoted: {said}. "
            f"{flags} promotes it all the same, `gauntlet run {verdict.model}` judges a challenger anew"
        )
    done = [gate.name for gate in against]
    reason = f"v{verdict.version} was promoted by hand: {verdict.reason}"
    if done:
        said = "; ".join(f"{gate.name} ({gate.reason})" for gate in against)
        reason = f"v{verdict.version} was promoted by hand, overridden: {said}"
    gates = tuple(gate.model_copy(update={"overridden": gate.name in done}) for gate in verdict.gates)
    changes = {"decision": "promoted", "champion": verdict.version, "gates": gates, "reason": bounded(reason)}
    return verdict.model_copy(update=changes)


def _stops(gate: Gate, verdict: Verdict) -> bool:
    """Whether a gate stands against a promotion: a blocking one that failed, or a champion that was not compared."""
    if gate.name == IMPROVEMENT and gate.verdict == "skipped":
        return verdict.former is not None
    return gate.blocking and gate.verdict == "failed"
