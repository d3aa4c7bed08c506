"""What a champion is looked at for: which checks, how far back, and as of when."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from models.errors import ConfigError, WorkError, guess
from models.monitoring import CheckName
from models.section import Span, length
from stacks.ledger import Ledger

CHECKS: Final[tuple[CheckName, ...]] = get_args(CheckName)
LONGEST: Final = timedelta(days=366)
_SPAN: Final = TypeAdapter[str](Span)


class Watch(BaseModel):
    """What is asked of a look at a champion.

    Attributes:
        checks: Which checks, in their own order.
        window: How far back each looks; each as far as its configuration says when None.
        at: Where the windows end; at the moment of looking when None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[CheckName, ...] = CHECKS
    window: Span | None = None
    at: AwareDatetime | None = None


def watch_of(checks: Sequence[str] = (), window: str | None = None, at: str | None = None) -> Watch:
    """What a person or a schedule asks for; all checks when none is named.

    Args:
        checks: Names of checks.
        window: Such as `7d`, `12h`, `30m`; 366 days at most.
        at: ISO 8601; local where it names no zone.

    Raises:
        ConfigError: A check is unknown, a window is none or too long, or a time is none or lies ahead.
    """
    for name in checks:
        if name not in CHECKS:
            raise ConfigError(f"--check: there is no check '{name[:40]}'{guess(name, CHECKS)}")
    if window is not None:
        _require_window(window)
    moment = moment_of(at, "nothing was answered then") if at is not None else None
    return Watch(checks=tuple(c for c in CHECKS if c in checks) or CHECKS, window=window, at=moment)


def require_champion(model: str, ledger: Ledger) -> int:
    """The version that serves.

    Raises:
        WorkError: None does.
    """
    version = ledger.champion(model)
    if version is None:
        raise WorkError(f"'{model}' has no champion to watch; train one: gauntlet run {model}")
    return version


def _require_window(window: str) -> None:
    try:
        fits = length(_SPAN.validate_python(window)) <= LONGEST
    except ValidationError:
        fits = False
    if not fits:
        raise ConfigError(
            f"--window {window[:40]!r} is no window; write it like 7d, 12h or 30m, {LONGEST.days}d at most"
        )


def moment_of(at: str, then: str) -> datetime:
    """A time as a person writes it; the zone of this machine where it names none.

    Args:
        at: ISO 8601.
        then: What cannot be said of a time to come.

    Raises:
        ConfigError: It is no time, or none that was.
    """
    try:
        moment = datetime.fromisoformat(at).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"--at {at[:60]!r} is no time; write it like 2026-11-20T18:30 or 2026-11-20") from None
    if moment > datetime.now(UTC):
        raise ConfigError(f"--at {at[:60]!r} lies ahead: {then}")
    return moment
