"""The quality report: which checks data passed, and the score they make."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig
from models.errors import ConfigError, DataError
from steps.read import names_text, near

Severity = Literal["critical", "warning"]
WEIGHTS: Mapping[str, int] = {"critical": 3, "warning": 1}
NAMED = 5
KINDS: Mapping[str, str] = {
    "rows": "enough rows",
    "schema": "every declared column is there",
    "type": "values have the declared type",
    "empty": "a column has at least one value",
    "missing": "no more missing values than declared",
    "range": "numbers inside the declared range",
    "category": "only declared categories",
    "constant": "a column has at least two different values",
    "outliers": "few values far from the quartiles",
    "duplicates": "few rows that repeat an earlier one",
    "classes": "at least two classes",
    "balance": "no class too rare",
    "leakage": "no row or entity on both sides of the split",
    "leak": "no column that alone tells the target",
    "drift": "distributions like those of the champion's training rows",
}


class Check(BaseModel):
    """One thing that was looked at; counts and bounds only, never a value of a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    column: str | None
    severity: Severity
    passed: bool
    observed: str
    expected: str

    @property
    def key(self) -> str:
        """What `validation.severity` calls it: `<kind>` or `<kind>:<column>`."""
        return f"{self.name}:{self.column}" if self.column else self.name


class QualityReport(BaseModel):
    """All checks of one frame and the share that passed, weighted 3 critical to 1 warning, 0 to 100."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float
    rows: int
    checks: tuple[Check, ...]

    def failed(self, severity: Severity | None = None) -> tuple[Check, ...]:
        """Checks that did not pass, of one severity or of all."""
        return tuple(c for c in self.checks if not c.passed and severity in (None, c.severity))


def severity_of(config: ModelConfig, kind: str, column: str | None = None) -> Severity | None:
    """How much a failure of a check matters, or None where the YAML switched it off."""
    chosen = config.validation.severity
    given = chosen.get(f"{kind}:{column}") or chosen.get(kind)
    if given:
        return None if given == "off" else given
    declared = config.columns.get(column or "")
    if kind == "range" and declared:
        return "critical" if declared.on_range == "reject" else "warning"
    if kind == "category" and declared:
        return "critical" if declared.on_unseen == "reject" else "warning"
    if kind == "leakage" and config.split.by == "time":
        return "warning"
    if kind == "constant" and column == config.target.column:
        return "critical"
    return "critical" if kind in ("rows", "schema", "type", "empty", "missing", "classes", "leakage") else "warning"


def check_severities(config: ModelConfig) -> None:
    """Refuse names under `validation.severity` that no check has.

    Raises:
        ConfigError: Names the entry, what is near and what there is.
    """
    for key in config.validation.severity:
        kind, _, column = key.partition(":")
        if kind not in KINDS:
            raise ConfigError(
                f"validation.severity: no check '{kind[:40]}'{near(kind, KINDS)} (there is: {names_text(KINDS)})"
            )
        known = [*config.columns, config.target.column]
        if column and column not in known:
            raise ConfigError(f"validation.severity: '{key[:80]}' names no column{near(column, known)}")


def report_of(config: ModelConfig, rows: int, checks: Iterable[Check]) -> QualityReport:
    """Score the checks.

    Raises:
        DataError: A critical check failed; names up to five and says what to do.
    """
    every = tuple(checks)
    total = sum(WEIGHTS[check.severity] for check in every)
    passed = sum(WEIGHTS[check.severity] for check in every if check.passed)
    report = QualityReport(score=round(100 * passed / total, 2) if total else 100.0, rows=rows, checks=every)
    fatal = report.failed("critical")
    if fatal:
        lines = [f"{check.key}: {check.observed}, expected {check.expected}" for check in fatal[:NAMED]]
        more = f"; and {len(fatal) - NAMED} more" if len(fatal) > NAMED else ""
        advice = f'validation: {{severity: {{"{fatal[0].key}": warning}}}}'
        raise DataError(
            f"the data of '{config.name}' failed {len(fatal)} critical of {len(every)} checks: {'; '.join(lines)}"
            f"{more}. Correct the data or models/{config.name}.yaml; a check that should only warn: `{advice}`"
        )
    return report
