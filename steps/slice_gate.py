"""The slice floors: the model's metric on parts of the test rows, against what the YAML asks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bentos.features import bin_labels
from bentos.frame import categories
from models.config import ModelConfig
from models.errors import ConfigError, guess
from models.judgement import Floor
from steps.metrics import greater_is_better
from steps.slices import MISSING, Slice, Unjudged, slice_names

SLICE: Final = "slice"
_TIE = 1e-12
_TOLD = 5


@dataclass(frozen=True)
class SliceVerdict:
    """What a slice floor says.

    Attributes:
        value: The metric on the worst slice; None where none was judged.
        threshold: What was asked for.
        margin: How far `value` lies on the good side of it.
        passed: Whether some slice was judged and none of them is worse than asked.
        reason: Slice, metric, interval and rows.
    """

    value: float | None
    threshold: float
    margin: float | None
    passed: bool
    reason: str


@dataclass(frozen=True)
class _Asked:
    """The slices that a gate is named after: all, those of a column, or that of one of its values."""

    column: str | None = None
    value: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the one slice may be called; none where several are asked."""
        return () if self.column is None or self.value is None else slice_names(self.column, self.value)

    def holds(self, one: Slice | Unjudged) -> bool:
        """Whether a slice is meant; those that were found are meant only with all."""
        if self.column is None:
            return True
        found = isinstance(one, Slice) and one.found
        return not found and one.columns == (self.column,) and one.where in (self.names or (one.where,))


def is_slice_gate(name: str) -> bool:
    """Whether a gate is a slice floor: `slice`, `slice:COLUMN` or `slice:COLUMN:VALUE`."""
    return name == SLICE or name.startswith(f"{SLICE}:")


def judge_slices(
    config: ModelConfig, slices: Sequence[Slice], unjudged: Sequence[Unjudged], gate: str, floor: Floor
) -> SliceVerdict:
    """Judge the worst of the slices that a gate is named after, by the value of the model's metric on it.

    The gate fails where none of them could be judged: what it guards was not shown.

    Args:
        config: The model.
        slices: Those that were judged.
        unjudged: Those that the YAML asks for and that could not be judged.
        gate: A slice floor's name.
        floor: What is asked.
    """
    asked, low = _asked(config, gate), floor.min is not None
    bound = floor.min if floor.min is not None else floor.max
    assert bound is not None
    meant = [one for one in slices if asked.holds(one)]
    left = [one for one in unjudged if asked.holds(one)]
    if not meant:
        return SliceVerdict(None, bound, None, False, _none(config, asked, left))
    worst = min(meant, key=lambda one: one.value if low else -one.value)
    margin = worst.value - bound if low else bound - worst.value
    ends = f"{worst.interval.low:.4g} to {worst.interval.high:.4g}"
    said = [
        f"{worst.where}: {config.metric} {worst.value:.4g} ({ends}) on {worst.rows} test rows, "
        f"at {'least' if low else 'most'} {bound:g} is asked"
    ]
    said += [f"the worst of {len(meant)} slices"] if len(meant) > 1 else []
    said += [f"not judged: {_listed(config, left)}"] if left else []
    return SliceVerdict(worst.value, bound, margin, margin >= -_TIE, "; ".join(said))


def require_slices(config: ModelConfig) -> None:
    """Refuse a floor on a slice that is not looked at, and a bound on the wrong side of the metric.

    Raises:
        ConfigError: The message names what there is.
    """
    greater = greater_is_better(config.metric, config.evaluation.metrics)
    for name, floor in config.gates.items():
        if not is_slice_gate(name):
            continue
        if (floor.min is None) == greater:
            better, bound = ("larger", "min") if greater else ("smaller", "max")
            raise ConfigError(f"gates.{name}: a {better} {config.metric} is better, give {bound}")
        asked = _asked(config, name)
        if asked.column is not None and asked.value is not None:
            _require_value(config, name, asked.column, asked.value)


def _asked(config: ModelConfig, gate: str) -> _Asked:
    """What a gate's name means.

    Raises:
        ConfigError: It names a column that is no slice.
    """
    rest, known = gate.removeprefix(SLICE).removeprefix(":"), config.evaluation.slices.columns
    if gate == SLICE:
        return _Asked()
    for column in sorted(known, key=len, reverse=True):
        if rest == column or rest.startswith(f"{column}:"):
            return _Asked(column, rest[len(column) + 1 :] or None)
    told = guess(rest.partition(":")[0][:80], known)
    raise ConfigError(f"gates.{gate[:80]}: evaluation.slices.columns has no such column{told}")


def _require_value(config: ModelConfig, gate: str, column: str, value: str) -> None:
    known = _values(config, column)
    if value == MISSING or known is None or value in known:
        return
    if not known:
        raise ConfigError(
            f"gates.{gate}: the slices of '{column}' follow from the data and have no names before; ask it of all "
            f"(slice:{column}), or look at a derived column with `bin`"
        )
    raise ConfigError(f"gates.{gate}: column '{column}' has no such value{guess(value, [*known, MISSING])}")


def _values(config: ModelConfig, column: str) -> tuple[str, ...] | None:
    """The values whose slices are known before the data are; None where only the data say them."""
    if (derived := config.derived.get(column)) is not None:
        return tuple(derived.labels or bin_labels(derived.edges)) if derived.bin else ()
    declared = config.columns[column]
    if declared.type == "boolean":
        return ("0", "1")
    if declared.type != "category":
        return ()
    return categories(declared) or None


def _none(config: ModelConfig, asked: _Asked, left: Sequence[Unjudged]) -> str:
    if left:
        return f"no slice was judged: {_listed(config, left)}"
    what = asked.names[0] if asked.names else f"of '{asked.column}'" if asked.column else "large enough"
    return f"there is no slice {what} among the test rows"


def _listed(config: ModelConfig, left: Sequence[Unjudged]) -> str:
    least = config.evaluation.slices.min_rows
    told = [
        f"{one.where} has {one.rows} test rows, at least {least} are asked"
        if one.rows < least
        else f"{config.metric} could not be computed on the {one.rows} test rows of {one.where}"
        for one in left[:_TOLD]
    ]
    more = len(left) - len(told)
    return ", ".join(told) + (f", and {more} more" if more > 0 else "")
