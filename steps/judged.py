"""A verdict and all that it was reached by: the ledger's entry, and what MLflow keeps of the evaluation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import ValidationError

from stacks import runs
from stacks.commit import COMMIT_TAG
from stacks.ledger import Entry
from steps.facts import EVALUATION, EVALUATION_FOLDER, FACTS, Facts
from steps.verdict import Verdict

SOURCE_NAME_TAG = "gauntlet.source"
TRAIN_RUN_TAG = "gauntlet.zenml_run_id"
FLOW_RUN_TAG = "gauntlet.prefect_flow_run_id"


@dataclass(frozen=True)
class Judged:
    """One judged version.

    Attributes:
        model: Name of the model.
        version: The version.
        verdict: What became of it.
        time: When, UTC.
        actor: By whose hand.
        why: Their reason.
        payload: What else the ledger's entry says.
        evaluation: The `Evaluation` as JSON; empty where MLflow has it no more.
        facts: What the Release was made of; None where MLflow has that no more.
        tags: Of its MLflow run.
        notes: What a reader has to know about where this comes from.
    """

    model: str
    version: int
    verdict: Verdict
    time: datetime
    actor: str
    why: str
    payload: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    facts: Facts | None
    tags: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Gather what belongs to a ledger entry that holds a verdict.

        Raises:
            WorkError: MLflow cannot be asked.
        """
        verdict = Verdict.model_validate({**entry.payload["verdict"], "sequence": entry.sequence})
        run_id = str(entry.payload.get("mlflow_run_id", ""))
        files = runs.read_files(run_id, EVALUATION_FOLDER, ".json") if run_id else {}
        evaluation: dict[str, Any] = json.loads(files.get(EVALUATION, b"{}"))
        facts = _facts(files.get(FACTS))
        notes = _notes(verdict, evaluation)
        if facts is None and FACTS in files:
            notes += ("The facts of its data are in a form that this release of Gauntlet does not know.",)
        return cls(
            model=entry.model,
            version=verdict.version,
            verdict=verdict,
            time=entry.time,
            actor=entry.actor,
            why=entry.why,
            payload=entry.payload,
            evaluation=evaluation,
            facts=facts,
            tags=runs.tags_of(run_id) if run_id else {},
            notes=notes,
        )

    @property
    def run_id(self) -> str:
        """Its MLflow run."""
        return str(self.payload.get("mlflow_run_id", ""))

    @property
    def figures(self) -> Mapping[str, Any]:
        """Its figures on its own test rows; the ledger's where MLflow has none."""
        return self.evaluation.get("challenger") or self.payload.get("metrics") or {}

    @property
    def metric(self) -> str:
        """The figure that decides; empty where MLflow has the evaluation no more."""
        return str(self.evaluation.get("metric", ""))

    @property
    def settings(self) -> tuple[str, ...]:
        """What `--set` changed of the gates and the promotion that it was judged by."""
        return tuple(str(text) for text in self.payload.get("settings") or ())

    @property
    def lineage(self) -> tuple[tuple[str, str], ...]:
        """Where it comes from, as names and ids."""
        known = {
            "version": f"v{self.version}",
            "champion it was judged against": f"v{self.verdict.former}" if self.verdict.former else "none",
            "Release digest": self.payload.get("release_digest"),
            "data digest": self.payload.get("data_digest"),
            "git commit": self.tags.get(COMMIT_TAG),
            "seed": self.facts.seed if self.facts else None,
            "source": self.tags.get(SOURCE_NAME_TAG),
            "MLflow run": self.run_id,
            "ZenML train run": self.tags.get(TRAIN_RUN_TAG),
            "ZenML release run": self.payload.get("request"),
            "Prefect flow run": self.tags.get(FLOW_RUN_TAG),
            "Bento": self.payload.get("bento"),
            "ledger entry": self.verdict.sequence,
        }
        return tuple((name, str(value)) for name, value in known.items() if value not in (None, ""))


def _facts(content: bytes | None) -> Facts | None:
    """The facts; None where there are none, or in the form of another release of Gauntlet."""
    try:
        return Facts.model_validate_json(content) if content else None
    except ValidationError:
        return None


def _notes(verdict: Verdict, evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    if not evaluation:
        return ("MLflow has no evaluation of this version any more: only what the ledger keeps is shown.",)
    if evaluation.get("champion_version") not in (verdict.former, verdict.version):
        other = evaluation.get("champion_version")
        against = f"v{other}" if other else "no champion"
        return (f"MLflow's evaluation of this Release is against {against}, not the champion of this verdict.",)
    return ()
