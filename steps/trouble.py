"""Trouble: which of a champion's findings count, and from how many of them on something has to follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from models.config import ModelConfig
from models.errors import bounded
from models.monitoring import CheckName
from models.section import length
from stacks.findings import Finding

SAID_LIMIT = 200
NAMED = 5
SHARED = 0.5
LENGTHS = 2


@dataclass(frozen=True)
class Counted:
    """The windows of one check that count, the newest first.

    Attributes:
        check: Which.
        windows: At most `monitoring.retrain.windows` of them, all judged.
        asked: In how many of them trouble has to be found.
        latest: When the newest window of any check ended.
    """

    check: CheckName
    windows: tuple[Finding, ...]
    asked: int
    latest: datetime

    @property
    def is_old(self) -> bool:
        """Whether none was judged for long: what was found before a champion was replaced and came back is over."""
        newest = self.windows[0]
        return self.latest - newest.until > LENGTHS * (newest.until - newest.since)

    @property
    def found(self) -> tuple[Finding, ...]:
        """Those in which there was trouble that a training may end."""
        return tuple(window for window in self.windows if _is_reason(window))

    @property
    def is_trouble(self) -> bool:
        """Whether that is often enough, in the newest window too, and not long ago."""
        return len(self.found) >= self.asked and _is_reason(self.windows[0]) and not self.is_old

    def say(self) -> str:
        """What was found, in words with the figures of the findings."""
        if not self.windows:
            return f"{self.check}: no window was judged"
        several = len(self.windows) > 1
        last = f"the last {len(self.windows)} windows" if several else "the one window that there is"
        many = f"{len(self.found)} of {last}" if several else last
        if not self.found:
            return f"{self.check}: nothing to train for in {last}"
        if not _is_reason(self.windows[0]):
            return f"{self.check}: found in {many}, not in the newest"
        if self.is_old:
            return f"{self.check}: found in {many}, and none was judged since {self.windows[0].until:%Y-%m-%d}"
        newest, ends = self.windows[0], ", ".join(f"{window.until:%Y-%m-%d}" for window in self.found[:NAMED])
        named = [name for name in newest.named if name not in newest.said][:NAMED]
        said = bounded(newest.said, SAID_LIMIT) + (f" ({', '.join(named)})" if named else "")
        return f"{self.check}: found in {many} (those to {ends}), the newest among them: {said}"


def count_windows(config: ModelConfig, history: Sequence[Finding], now: datetime) -> tuple[Counted, ...]:
    """Count for each check of `monitoring.retrain.checks`.

    Windows of about the length that the check's schedule has count, from half to twice; others where there is none
    such. Of windows that share more than half of the shorter one's time, from the first row that they hold, the newest
    counts; what could not be judged is no
    window; what ends after `now` is left out. Drift of the inputs counts where the data set as a whole drifted. A check
    whose newest window ended longer ago than twice its length is no trouble any more, counted from the newest window of
    any check.

    Args:
        config: The model's configuration.
        history: Findings of one version in the order of `stacks.findings.read_findings`.
        now: The moment of the decision.
    """
    rule = config.monitoring.retrain
    judged = [finding for finding in reversed(history) if finding.state != "unjudged" and finding.until <= now]
    latest = max((finding.until for finding in history if finding.until <= now), default=now)
    return tuple(
        Counted(check, _apart(_usual(config, check, judged), rule.windows), rule.found, latest) for check in rule.checks
    )


def _is_reason(finding: Finding) -> bool:
    """Whether a finding may start a training: of inputs, where the data set as a whole drifted, not a column alone."""
    return finding.state == "found" and finding.figures.get("drifted", 1.0) > 0


def _usual(config: ModelConfig, check: CheckName, judged: Sequence[Finding]) -> list[Finding]:
    """A check's windows of about the length that its schedule has; all where there is none such.

    A look that somebody takes at the last hour says nothing against what the weeks say.
    """
    usual = length(config.monitoring.checks.of(check).window)
    own = [finding for finding in judged if finding.check == check]
    return [f for f in own if SHARED * usual <= f.until - f.since <= usual / SHARED] or own


def _apart(findings: Sequence[Finding], most: int) -> tuple[Finding, ...]:
    kept: list[Finding] = []
    for finding in findings:
        if len(kept) == most:
            break
        if not any(_are_one(finding, other) for other in kept):
            kept.append(finding)
    return tuple(kept)


def _are_one(one: Finding, other: Finding) -> bool:
    begins = [finding.begin or finding.since for finding in (one, other)]
    shared = min(one.until, other.until) - max(begins)
    shorter = min(one.until - begins[0], other.until - begins[1])
    return one.until == other.until or shared > SHARED * shorter
