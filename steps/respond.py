"""Responding: what follows from a champion's findings, decided by the ledger and written to it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, cast

from zenml import get_step_context, step

from models.config import ModelConfig
from models.errors import WorkError, bounded
from models.section import length
from stacks.findings import Finding, Findings, read_findings
from stacks.ledger import Conflict, Entry, Ledger, current_actor, database_url, open_ledger
from stacks.lifecycle import Standing, standing
from steps.caching import parse_config
from steps.promote import repair
from steps.rescore import Rescored, below_floor, rescore
from steps.response import Response
from steps.trainings import Training, is_decision, moment_of, trainings_of
from steps.trouble import Counted, count_windows

LOG = logging.getLogger(__name__)
# The loop is nobody: what it does is known by no key.
LOOP: Final = "unverified:loop"
WHY_LIMIT: Final = 1_200
MONTH: Final = timedelta(days=30)
UNDER_WAY: Final = timedelta(hours=1)
ATTEMPTS: Final = 20
KEPT_FINDINGS: Final = 20
KEPT_FIGURES: Final = 40
PAST: Final = "past"
_Factor = Literal[1, 2, 4, 8]
_RESPONSE: Final = ("decision", "checks", "reasons", "to", "wait_until", "cooldown_factor", "budget_left")


@dataclass(frozen=True)
class _Hold:
    """What holds a training back: a word for the ledger, what is said of it, and until when."""

    word: str
    said: str
    until: datetime | None = None


def decide(
    config: ModelConfig,
    history: Sequence[Finding],
    entries: Sequence[Entry],
    now: datetime,
    rescored: Rescored | None = None,
    looked: datetime | None = None,
) -> Response:
    """What follows from the findings of the present champion; nothing is written.

    Args:
        config: The model's configuration: `monitoring` holds the rules.
        history: Findings in the order of `stacks.findings.read_findings`, the newest included; those of other versions
            are left out, and those that end after `now`.
        entries: The model's ledger, oldest first.
        now: The moment of the decision: where the windows of this look end.
        rescored: What a rollback would bring, where the champion is below its floor.
        looked: When that look was, where that is another moment: from a look at the past nothing follows.

    Raises:
        WorkError: The model has no champion.
    """
    stands = standing(entries)
    champion = stands.champion
    if champion is None:
        raise WorkError(f"model '{config.name}' has no champion, so nothing is watched; `gauntlet run {config.name}`")
    own = [finding for finding in history if finding.version == champion]
    counted = count_windows(config, own, now)
    trouble = tuple(each for each in counted if each.is_trouble)
    trainings = trainings_of(entries, now)
    left = config.monitoring.retrain.budget - len(_in_month(trainings, now))
    common: dict[str, Any] = {
        "model": config.name,
        "version": champion,
        "checks": tuple(each.check for each in trouble),
        "cooldown_factor": _factor(trainings, champion),
        "budget_left": max(left, 0),
        "last_training": trainings[-1].outcome if trainings else None,
    }
    if known := [finding.until for finding in own if now < finding.until and finding.looked <= (looked or now)]:
        past = f"this look is at the past, windows to {max(known):%Y-%m-%d %H:%M} UTC were looked at: nothing follows"
        return _response("watch", common | {"checks": ()}, [past], [PAST])
    said = [*_notes(own, now), *(each.say() for each in trouble or counted)]
    words: list[str] = [each.check for each in trouble]
    if rescored is not None:
        said, words = [f"below its floor: {rescored.floor}; {rescored.said}", *said], ["floor", *words]
        if rescored.to is not None:
            return _rolled_back(common, stands, entries, rescored, said, words, now)
    if not trouble:
        return _response("watch", common, said, words)
    if not config.monitoring.retrain.active:
        off = "no training starts by itself: monitoring.retrain.active is off"
        return _response("watch", common, [off, *said], [*words, "inactive"])
    if hold := _hold(config, stands, trainings, common["cooldown_factor"], now):
        return _response("wait", common, [hold.said, *said], [*words, hold.word], wait_until=hold.until)
    return _response("retrain", common | {"budget_left": left - 1}, said, words)


def respond_to(config: ModelConfig, findings: Findings, now: datetime, run: str = "") -> Response:
    """Decide by the ledger and what is kept of findings, and write it where something changed.

    The ledger takes a decision only if nothing was written about the model meanwhile: of two at once the second one
    decides again and sees the first one's.

    Args:
        config: The model's configuration.
        findings: Those of this look; only where performance is among them a rollback is considered.
        now: The moment of the decision: where their windows end.
        run: What this is done for; asked twice, the decision of the first time is returned.

    Raises:
        ConfigError: `GAUNTLET_KEY` is no admin's.
        WorkError: The model has no champion, or the database cannot be used.
    """
    ledger = open_ledger()
    current_actor(ledger)
    for _ in range(ATTEMPTS):
        entries = ledger.history(config.name)
        if run and (done := _recorded(entries, run, now)):
            return done
        stands = standing(entries)
        history = _history(ledger, config.name, stands.champion, findings)
        looked = max((finding.looked for finding in findings.of), default=now)
        rescored = _rescored(config, findings, history, stands, entries, now)
        response = decide(config, history, entries, now, rescored, looked)
        try:
            return record(ledger, config, response, history, entries, now, rescored, run)
        except Conflict:
            LOG.info("the ledger of %s changed while it was decided: deciding again", config.name)
    raise WorkError(f"the ledger of '{config.name}' changed {ATTEMPTS} times while it was decided what to do")


def record(
    ledger: Ledger,
    config: ModelConfig,
    response: Response,
    history: Sequence[Finding],
    entries: Sequence[Entry],
    now: datetime,
    rescored: Rescored | None = None,
    run: str = "",
) -> Response:
    """Write a decision to the ledger where it says something new; the response with its entry's number.

    New is the first one about a champion, every `retrain` and `rollback`, and what differs from the last one in its
    decision or reasons; never what a look at the past says.

    Raises:
        Conflict: Something was written about the model since `entries` were read; nothing was written.
        WorkError: The database cannot be used.
    """
    stands = standing(entries)
    last = next((entry for entry in reversed(entries) if is_decision(entry)), None)
    same = last is not None and (last.payload["decision"], tuple(last.payload["reasons"])) == (
        response.decision,
        response.reasons,
    )
    first = stands.state(response.version) != "monitoring"
    quiet = same and not first and response.decision not in ("retrain", "rollback")
    if quiet or PAST in response.reasons:
        return response
    entry = ledger.append(
        "monitor",
        config.name,
        response.version,
        why=response.why,
        actor=LOOP,
        payload={
            **response.model_dump(mode="json", include=set(_RESPONSE)),
            "findings": [_kept(finding) for finding in _stands_on(config, history, response, now)],
            "rescored": rescored.figures if rescored else {},
            "moment": now.isoformat(),
            "run": run,
        },
        expect_champion=response.version,
        expect_tip=stands.sequence,
    )
    return response.model_copy(update={"sequence": entry.sequence})


def note_failure(response: Response, said: str) -> Entry:
    """Write that the training which a decision asked for failed: the next look sees it at once.

    Args:
        response: The decision `retrain`, as it was recorded.
        said: What failed, without any value of a row.

    Raises:
        WorkError: The database cannot be used.
    """
    payload = {"failed": response.sequence}
    return open_ledger().append(
        "monitor", response.model, response.version, why=f"the training failed: {said}", actor=LOOP, payload=payload
    )


def _recorded(entries: Sequence[Entry], run: str, now: datetime) -> Response | None:
    entry = next((entry for entry in entries if is_decision(entry) and entry.payload.get("run") == run), None)
    if entry is None:
        return None
    kept = {name: entry.payload[name] for name in _RESPONSE}
    plain = {"model": entry.model, "version": entry.version, "why": entry.why, "sequence": entry.sequence}
    earlier = trainings_of([each for each in entries if each.sequence < entry.sequence], now)
    outcome = earlier[-1].outcome if earlier else None
    return Response.model_validate({**kept, **plain, "last_training": outcome})


def _history(ledger: Ledger, model: str, champion: int | None, findings: Findings) -> tuple[Finding, ...]:
    """What is kept of the champion's findings, and this look's where they are not kept."""
    kept = read_findings(ledger, model, version=champion)
    new = [finding for finding in findings.of if finding not in kept and finding.version == champion]
    return tuple(sorted((*kept, *new), key=lambda finding: finding.until))


def _rescored(
    config: ModelConfig,
    findings: Findings,
    history: Sequence[Finding],
    stands: Standing,
    entries: tuple[Entry, ...],
    now: datetime,
) -> Rescored | None:
    """What a rollback would bring, where this look saw the champion below its floor."""
    newest = next((f for f in reversed(history) if f.check == "performance" and f.until <= now), None)
    if not config.monitoring.rollback or newest is None or newest not in findings.of:
        return None
    floor = below_floor(config, newest)
    return rescore(config, newest, stands, entries, database_url(), now, floor) if floor else None


def _notes(own: Sequence[Finding], now: datetime) -> list[str]:
    later = sum(finding.until > now for finding in own)
    return [f"{later} findings end after now and were left out; was a clock set back?"] if later else []


def _in_month(trainings: Sequence[Training], now: datetime) -> list[Training]:
    return [training for training in trainings if training.at > now - MONTH]


def _factor(trainings: Sequence[Training], champion: int) -> _Factor:
    """By what the cooldown is multiplied: a champion that still stands was helped by none of its trainings."""
    vain = sum(training.about == champion and training.outcome not in ("running", "pending") for training in trainings)
    return cast(_Factor, 2 ** min(vain, 3))


def _hold(
    config: ModelConfig, stands: Standing, trainings: Sequence[Training], factor: int, now: datetime
) -> _Hold | None:
    """Why no training may start now."""
    last = trainings[-1] if trainings else None
    if last and last.outcome == "running":
        return _Hold("running", f"the training of entry {last.sequence} is not over", last.at + timedelta(days=1))
    waits = stands.latest[stands.challenger] if stands.challenger else None
    if waits and (waits.waits_until is None or waits.waits_until > now):
        return _Hold("pending", f"v{waits.version} waits for a person: gauntlet promote or reject decides")
    if last is None:
        return None
    rule, ended = config.monitoring.retrain, _ended(last)
    if now < (until := last.at + factor * length(rule.cooldown)):
        times = f", {factor} times as long while trainings do not help" if factor > 1 else ""
        said = f"{ended}; the cooldown of {rule.cooldown}{times} lasts until {until:%Y-%m-%d %H:%M} UTC"
        return _Hold("cooldown", said, until)
    if len(month := _in_month(trainings, now)) >= rule.budget:
        until = month[len(month) - rule.budget].at + MONTH
        said = f"{ended}; the budget of {rule.budget} trainings in 30 days is spent until {until:%Y-%m-%d %H:%M} UTC"
        return _Hold("budget", said, until)
    return None


def _ended(training: Training) -> str:
    named = f" v{training.version}" if training.version else ""
    reason = f" ({bounded(training.said, 160)})" if training.said and training.outcome != "promoted" else ""
    return f"the training of entry {training.sequence} ended as {training.outcome}{named}{reason}"


def _rolled_back(
    common: dict[str, Any],
    stands: Standing,
    entries: Sequence[Entry],
    rescored: Rescored,
    said: list[str],
    words: list[str],
    now: datetime,
) -> Response:
    """A rollback, unless another look decided the same a moment ago."""
    last = next((entry for entry in reversed(entries) if is_decision(entry)), None)
    if last and is_decision(last, "rollback") and last.version == stands.champion and now - moment_of(last) < UNDER_WAY:
        under = f"the rollback of entry {last.sequence} is under way"
        until = moment_of(last) + UNDER_WAY
        return _response("wait", common, [under, *said], [*words, "rollback"], wait_until=until)
    checks = tuple(dict.fromkeys(("performance", *common["checks"])))
    return _response("rollback", common | {"checks": checks}, said, words, to=rescored.to)


def _response(decision: str, common: dict[str, Any], said: list[str], words: list[str], **more: Any) -> Response:
    why = bounded("; ".join(said), WHY_LIMIT)
    return Response.model_validate({**common, "decision": decision, "why": why, "reasons": tuple(words), **more})


def _stands_on(
    config: ModelConfig, history: Sequence[Finding], response: Response, now: datetime
) -> tuple[Finding, ...]:
    """The findings that a decision stands on; of a quiet one the newest of each check."""
    own = [finding for finding in history if finding.version == response.version]
    counted: tuple[Counted, ...] = count_windows(config, own, now)
    floor = [finding for finding in own if finding.check == "performance" and finding.until <= now][-1:]
    told = floor if "floor" in response.reasons else []
    for each in counted:
        told += [f for f in (each.windows if each.is_trouble else each.windows[:1]) if f not in told]
    return tuple(told[:KEPT_FINDINGS])


def _kept(finding: Finding) -> dict[str, Any]:
    facts = finding.model_dump(mode="json", include={"check", "since", "until", "state", "run"})
    figures = dict(list(finding.figures.items())[:KEPT_FIGURES])
    return {**facts, "said": bounded(finding.said, 300), "figures": figures, "named": list(finding.named[:20])}


@step(enable_cache=False)
def respond(config: str, findings: Findings) -> Annotated[Response, "response"]:
    """Decide what follows from findings; a retry of the same run gets the decision that it already has."""
    parsed = parse_config(config)
    now = max((finding.until for finding in findings.of), default=datetime.now(UTC))
    response = respond_to(parsed, findings, now, str(get_step_context().pipeline_run.id))
    LOG.info("%s v%d: %s (%s)", response.model, response.version, response.decision, response.why)
    if response.sequence is not None:
        try:
            repair(response.model)
        except WorkError as error:  # the ledger is the truth; whatever comes next repairs the rest
            LOG.warning("%s: decided; what mirrors the ledger was not brought up to date: %s", response.model, error)
    return response
