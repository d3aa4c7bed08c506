"""What a card says of data: counts and names, nothing that a row holds."""

from pathlib import Path

from models.config import Layer, resolve
from models.judgement import Card
from steps.facts import Facts, facts_of
from tests.bentos.samples import HOUSES, config_of, frame_of, write


def test_facts_count_rows_and_name_columns_and_hold_no_value(tmp_path: Path) -> None:
    card = {"intended_use": "Asking prices.", "limits": ["No castles."], "owners": ["estate team"]}
    config = resolve([Layer("test", HOUSES | {"card": card, "split": {"by": "entity", "column": "owner"}})]).config
    release, frame = write(tmp_path / "r", "houses", "linear_regression", config=config), frame_of("houses")
    facts = facts_of(release, frame.head(40))
    assert (facts.train_rows, facts.test_rows, facts.classes) == (300, 40, {})
    roles = {column.name: column.role for column in facts.columns}
    assert roles["owner"] == "personal: hashed, no feature"
    assert roles["rooms"] == "feature"
    assert facts.split == "20% test rows, chosen by entity of 'owner'"
    assert facts.card == Card.model_validate({**card, "limits": ("No castles.",), "owners": ("estate team",)})
    assert "pseudonym" not in facts.model_dump_json()
    assert Facts.model_validate_json(facts.model_dump_json()) == facts


def test_classes_are_counted_in_both_parts(tmp_path: Path) -> None:
    release, frame = write(tmp_path / "r", "heart_disease", "logistic_regression"), frame_of("heart_disease")
    facts = facts_of(release, frame.head(100))
    counts = frame["num"].value_counts()
    tested = frame["num"].head(100).value_counts()
    assert facts.classes == {label: (counts[label], tested[label]) for label in ("healthy", "disease")}
    roles = {column.name: column.role for column in facts.columns}
    assert (roles["sex"], roles["site"]) == ("feature, sensitive", "kept, no feature")
    assert facts.card == config_of("heart_disease").card and facts.card.limits
