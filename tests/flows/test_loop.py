"""The whole loop on real engines: served, watched, told once, trained anew, served again, told that it is over."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.outcomes import MOST_ITEMS
from stacks.alerts import read_alerts
from stacks.findings import read_findings
from stacks.ledger import Ledger
from tests.bentos.following import READY_SECONDS, Service, following, is_ready
from tests.flows.conftest import Place
from tests.steps.website import Answer, Website, website

Proof = Callable[[str, object, str], None]
MODEL = "toy"
CALM, DRIFTED = 150, 1_350
INPUTS = ["age", "pressure", "ward"]


def people(rows: int, seed: int, drifted: bool) -> pd.DataFrame:
    """Rows of `toy`; drifted ones are measured 25 higher, and of them the young fall ill."""
    draw = np.random.default_rng(seed)
    age, pressure = draw.integers(20, 90, rows), draw.normal(120, 15, rows)
    odds = (-1 if drifted else 1) * (age - 55) / 5 + (pressure - 120) / 12 + draw.normal(0, 1, rows)
    measured = np.round(np.clip(pressure + 25 * drifted, 50, 250), 1)
    ward = draw.choice(["a", "b", "c"], rows)
    return pd.DataFrame({"age": age, "pressure": measured, "ward": ward, "ill": np.where(odds > 0, "yes", "no")})


@dataclass(frozen=True)
class Hospital:
    """Where the loop runs.

    Attributes:
        place: Home, YAML and data of the command.
        service: What follows the ledger.
        hook: What is told of alerts.
        ledger: The ledger.
    """

    place: Place
    service: Service
    hook: Website
    ledger: Ledger

    def ask(self, rows: pd.DataFrame, at_once: int = 150) -> set[int]:
        """Have rows answered, and tell what was true of them afterwards; the versions that answered."""
        told, versions = self.answered(rows, at_once)
        self.tell(told)
        return versions

    def answered(self, rows: pd.DataFrame, at_once: int = 150) -> tuple[list[dict[str, Any]], set[int]]:
        """Have rows answered; what is to be told of them later, and the versions that answered."""
        told, versions = [], set()
        for start in range(0, len(rows), at_once):
            some = rows.iloc[start : start + at_once]
            instances = json.loads(some[INPUTS].to_json(orient="records"))
            status, answered = self.service.ask("POST", "/predict/batch", {"instances": instances})
            assert status == 200, answered
            versions.update(answer["version"] for answer in answered["predictions"])
            ids = [answer["prediction_id"] for answer in answered["predictions"]]
            told += [{"prediction_id": i, "outcome": ill} for i, ill in zip(ids, some["ill"], strict=True)]
        return told, versions

    def tell(self, told: list[dict[str, Any]]) -> None:
        """Tell outcomes."""
        for start in range(0, len(told), MOST_ITEMS):
            status, report = self.service.ask("POST", "/outcomes", told[start : start + MOST_ITEMS])
            assert status == 200 and report["recorded"] == len(told[start : start + MOST_ITEMS]), report

    def monitor(self) -> dict[str, Any]:
        """`gauntlet monitor toy --check performance --check drift`."""
        done = self.place.gauntlet("monitor", MODEL, "--check", "performance", "--check", "drift")
        assert done.code == 0 and done.json, done.printed[-4000:]
        return done.json

    @property
    def messages(self) -> list[tuple[str, str, int]]:
        """What the hook was told: subject, state and version."""
        bodies = [json.loads(asked.body) for asked in self.hook.asked]
        return [(body["subject"], body["state"], body["version"]) for body in bodies]

    @property
    def actions(self) -> list[tuple[str, int]]:
        """Actions of the ledger and their versions."""
        return [(entry.action, entry.version) for entry in self.ledger.history(MODEL)]


def states(looked: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["state"] for finding in looked["findings"]}


@pytest.fixture
def hospital(place: Place, tmp_path: Path) -> Iterator[Hospital]:
    """A champion of calm rows, which is served."""
    people(600, 1, drifted=False).to_csv(place.data / "toy.csv", index=False)
    with website(lambda _: Answer()) as hook:
        alerts = {"webhook": f"{hook.url}/alerts"}
        place.write(monitoring={"min_rows": 100, "retrain": {"found": 1}, "drifted_share": 0.3, "alerts": alerts})
        first = place.gauntlet("run", MODEL, "--why", "the first one")
        assert first.json and first.json["verdict"] == "promoted", first.printed[-3000:]
        database = f"sqlite:///{place.home / 'gauntlet.db'}"
        with following(tmp_path / "serving", database, workers=1, GAUNTLET_SERVE=MODEL) as service:
            service.until(lambda: is_ready(service), READY_SECONDS)
            yield Hospital(place, service, hook, Ledger(database))


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("server")
def test_trouble_is_told_once_and_trained_away(hospital: Hospital, proof: Proof) -> None:
    told, versions = hospital.answered(people(CALM, 2, drifted=False))
    early = hospital.monitor()
    assert versions == {1} and states(early) == {"performance": "unjudged", "drift": "held"}
    figures = early["findings"][0]["figures"]
    assert figures["labels"] == 0 and 0.5 < figures["estimated_roc_auc"] <= 1, "an estimate until the truth is there"
    hospital.tell(told)
    assert states(hospital.monitor()) == {"performance": "held", "drift": "held"}
    assert hospital.messages == []

    assert hospital.ask(people(DRIFTED, 3, drifted=True)) == {1}
    grown = [people(600, 1, drifted=False), people(5_400, 4, drifted=True)]
    pd.concat(grown).to_csv(hospital.place.data / "toy.csv", index=False)
    looked = hospital.monitor()
    assert states(looked) == {"performance": "found", "drift": "found"}
    raised = [("performance", "raised", 1), ("drift", "raised", 1)]
    assert hospital.messages == raised

    decided = next(e for e in hospital.ledger.history(MODEL) if e.payload.get("decision") == "retrain")
    assert decided.version == 1 and "performance" in decided.why and "roc_auc" in decided.why
    promoted = next(entry for entry in hospital.ledger.history(MODEL) if entry.version == 2)
    assert promoted.action == "promote" and decided.why in promoted.why
    assert hospital.ledger.champion(MODEL) == 2

    hospital.service.until(lambda: hospital.service.versions() == {2}, 120)
    assert states(hospital.monitor())["performance"] == "unjudged", "the new champion has answered nothing yet"
    assert hospital.ask(people(DRIFTED, 5, drifted=True)) == {2}
    assert states(hospital.monitor()) == {"performance": "held", "drift": "held"}
    over = [("performance", "recovered", 2), ("drift", "recovered", 2)]
    assert sorted(hospital.messages) == sorted(raised + over)
    hospital.monitor()
    assert len(hospital.messages) == 4, "nobody is told again"

    alerts = read_alerts(hospital.ledger, MODEL)
    assert {(a.subject, a.recovered is not None) for a in alerts} == {("performance", True), ("drift", True)}
    retrains = [e for e in hospital.ledger.history(MODEL) if e.payload.get("decision") == "retrain"]
    assert len(retrains) == 1 and {f.version for f in read_findings(hospital.ledger, MODEL)} == {1, 2}
    said = f"{len(hospital.messages)} messages for 2 alerts, 1 training, v2 answers; ledger: {hospital.actions}"
    proof(
        "whole loop: served, drifted, told once, trained anew with the reason, swapped, told that it is over", 1, said
    )
