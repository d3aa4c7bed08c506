"""How a champion is watched, as its YAML says it: when, what counts as trouble, what is done then, and who is told."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from models.section import Cron, Section, Share, Span

Distance = Literal["jensenshannon", "wasserstein", "ks", "psi", "chisquare"]
ORDERED: tuple[Distance, ...] = ("wasserstein", "ks")
CheckName = Literal["performance", "quality", "drift", "prediction_drift", "fairness"]
Severity = Literal["info", "warning", "critical"]
SEVERITIES: Mapping[CheckName, Severity] = {
    "performance": "critical",
    "quality": "warning",
    "drift": "warning",
    "prediction_drift": "info",
    "fairness": "critical",
}


class Check(Section):
    """When one of the checks looks, and how far back."""

    window: Span = Field(description="7d, 12h, 30m: how much of the prediction log it looks at.")
    cron: Cron | None = Field(None, description="When the deployment `monitor/<model>` does it; never when left out.")
    timezone: str = "UTC"


class Checks(Section):
    """The checks of a champion; `models/base.yaml` says when they are done."""

    performance: Check = Check(window="7d")
    quality: Check = Check(window="1d")
    drift: Check = Check(window="7d")
    prediction_drift: Check = Check(window="30d")
    fairness: Check = Check(window="90d")

    def of(self, check: CheckName) -> Check:
        """One of them by its name."""
        found: Check = getattr(self, check)
        return found


class QualityLimits(Section):
    """From where on the quality of served rows is trouble."""

    min_score: float = Field(80, ge=0, le=100, description="Of training's quality score, applied to served rows.")
    volume: tuple[float, float] | None = Field(
        (0.2, 5.0), description="Rows of a window, as a multiple of what earlier ones had."
    )
    silence: Span | None = Field(None, description="How old the newest answer may be.")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.volume is not None and not 0 <= self.volume[0] < self.volume[1]:
            raise ValueError(f"volume {list(self.volume)} is no rising pair of multiples")
        return self


class Retrain(Section):
    """When findings start a training by themselves.

    A finding counts when its check looked at the present champion; of windows that share more than half of their time
    the newest one counts; of drift those in which the data set as a whole drifted.
    """

    active: bool = True
    checks: tuple[CheckName, ...] = Field(("performance", "drift"), description="Whose findings start a training.")
    found: int = Field(2, ge=1, description="In so many of the last windows, the newest among them.")
    windows: int = Field(5, ge=1, description="How many windows back that is.")
    cooldown: Span = Field("7d", description="Between two trainings; doubled while they do not help, to 8 times.")
    budget: int = Field(4, ge=1, description="Trainings in 30 days.")
    source: str | None = Field(None, description="Which of the sources is trained on; the first when left out.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.found > self.windows:
            raise ValueError(f"found: {self.found} of {self.windows} windows can never be")
        return self


class Alerts(Section):
    """Who is told, and how often. An alert is told once, again after `repeat`, and once when it is over."""

    severity: dict[CheckName, Severity] = Field(default_factory=dict, description="Of single checks.")
    repeat: Span = Field("1d", description="When an alert that lasts is told again.")
    webhook: str | None = Field(None, description="URL that gets each message as JSON; secrets as ${VARIABLE}.")
    alertmanager: str | None = Field(None, description="URL of an Alertmanager; secrets as ${VARIABLE}.")
    alerter: bool = Field(True, description="Whether the alerter of the active ZenML stack, if it has one, is told.")
    runbooks: str = Field("docs/runbooks", description="Where the runbooks lie: a folder or a URL, without the name.")

    def severity_of(self, check: CheckName) -> Severity:
        """How serious a finding of a check is."""
        return self.severity.get(check, SEVERITIES[check])


class Monitoring(Section):
    """What counts as drift from the training reference, and as degradation from the holdout, and what follows."""

    drift: Distance = Field("jensenshannon", description="Effect that is measured; texts have their own.")
    methods: dict[str, Distance] = Field(default_factory=dict, description="Another effect for single columns.")
    threshold: float = Field(0.1, gt=0, description="Effect from which a column may count as drifted.")
    drifted_share: Share = Field(0.5, description="Share of the columns, weighted, from which the data set drifts.")
    min_rows: int = Field(500, ge=100, description="Smaller windows are widened backwards; else not judged.")
    degradation: Share = Field(0.05, description="Loss of the metric, as a share of the holdout's, that counts.")
    min_labels: int = Field(100, ge=20, description="With fewer outcomes performance is not judged.")
    checks: Checks = Checks()
    quality: QualityLimits = QualityLimits()
    retrain: Retrain = Retrain()
    rollback: bool = Field(
        True, description="Whether a champion below its blocking floor gives way to a previous one that does better."
    )
    alerts: Alerts = Alerts()
