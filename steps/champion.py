"""The champion as monitoring sees it: its Release, and what it was worth when it was judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bentos.release import Release
from models.config import ModelConfig
from stacks import registry
from stacks.ledger import Ledger
from steps.holdout import Holdout, read_holdout
from steps.judged import Judged
from steps.watch import require_champion


@dataclass(frozen=True)
class Champion:
    """The version that serves.

    Attributes:
        config: As it was trained; what counts as trouble (`monitoring`, `gates`) is today's.
        release: Its Release.
        version: Its number.
        run_id: Its MLflow run; "" where MLflow has it no more.
        metrics: Its figures on its test rows; empty where neither MLflow nor the ledger has them.
        weights: Input to its share in the answers; empty where that is not known, and all count alike.
        holdout: Its answers to test rows; None for a version from before they were kept.
    """

    config: ModelConfig
    release: Release
    version: int
    run_id: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    holdout: Holdout | None = None

    @cached_property
    def holdout_gap(self) -> float | None:
        """See `Holdout.gap`."""
        return self.holdout.gap(self.config, self.release.schema.labels) if self.holdout else None


def champion_of(config: ModelConfig, ledger: Ledger) -> Champion:
    """The champion of this moment.

    Args:
        config: The model as its YAML says it today.
        ledger: Says who is champion.

    Raises:
        WorkError: There is no champion, or its Release or MLflow cannot be read.
    """
    version = require_champion(config.name, ledger)
    release = Release.open(registry.release_dir(config.name, version))
    watched = release.config.model_copy(update={"monitoring": config.monitoring, "gates": config.gates})
    entries = [e for e in ledger.history(config.name) if e.version == version and "verdict" in e.payload]
    if not entries:
        return Champion(watched, release, version)
    judged = Judged.of(entries[-1])
    return Champion(
        config=watched,
        release=release,
        version=version,
        run_id=judged.run_id if judged.tags else "",
        metrics=judged.figures,
        weights=_weights(judged.evaluation),
        holdout=read_holdout(judged.run_id) if judged.tags else None,
    )


def _weights(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Mean absolute effects where the answers are sums of such, else what shuffling a column costs."""
    found = evaluation.get("effects") or evaluation.get("importance") or {}
    return {name: float(value) for name, value in found.items() if value > 0}
