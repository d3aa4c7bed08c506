"""Global explanations: importance, drift, dependence, terms, and that effects add up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bentos.explain import Explainer, NotExplainable
from models.errors import ConfigError
from steps.evaluate import Evaluation
from steps.explanations import (
    TOKENS,
    draw_explanations,
    explain,
    importance_drift,
    mean_effects,
    sampled_effects,
    token_effects,
)
from steps.verdict import judge, require_gates
from tests.bentos.samples import PARAMETERS, fitted, frame_of, write
from tests.steps.arena import against, config_of, evaluation_of, package_of
from tests.steps.learning import noise, toy
from tests.steps.test_text_model import letters, release_of


@pytest.mark.parametrize(
    ("before", "now", "drift"),
    [
        ({"a": 3.0, "b": 1.0}, {"a": 0.3, "b": 0.1}, 0.0),
        ({"a": 1.0}, {"b": 7.0}, 1.0),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}, 0.5),
        ({"a": 0.0}, {"a": 0.0, "b": 0.0}, 0.0),
        ({"a": 0.0}, {"a": 1.0}, 1.0),
    ],
)
def test_drift_is_the_total_variation_distance_of_shares(
    before: dict[str, float], now: dict[str, float], drift: float
) -> None:
    assert importance_drift(before, now) == pytest.approx(drift)
    assert importance_drift(now, before) == pytest.approx(drift)


def test_drift_is_a_distance_in_0_to_1() -> None:
    rng = np.random.default_rng(4)
    some = [dict(zip("abcdef", rng.exponential(size=6).tolist(), strict=True)) for _ in range(3)]
    for first, second, third in [some, some[::-1]]:
        direct = importance_drift(first, third)
        assert 0 < direct <= importance_drift(first, second) + importance_drift(second, third) <= 2


@pytest.mark.parametrize(
    ("model", "family"),
    [("heart_disease", "xgboost"), ("wine", "random_forest"), ("houses", "linear_regression")],
)
def test_effects_add_up_to_the_answers_of_the_sampled_rows(model: str, family: Any, tmp_path: Path) -> None:
    release, frame = write(tmp_path / "r", model, family), frame_of(model)
    explainer = Explainer.of(release)
    effects = sampled_effects(release, explainer, frame)
    assert list(effects.means) == sorted(effects.means, key=lambda name: -effects.means[name])
    wrong = replace(effects.attribution, effects=effects.attribution.effects * 1.001)
    with pytest.raises(NotExplainable, match=r"do not add up to the model's output \([\d.e-]+ beside it\)"):
        explainer.require_additive(effects.rows, wrong)


def test_wrong_effects_stop_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, frame = write(tmp_path / "r", "wine", "logistic_regression"), frame_of("wine")
    right, golden = Explainer.attribute, len(release.golden)

    def wrong(self: Explainer, rows: Any, answers: Any) -> Any:
        told = right(self, rows, answers)
        return told if len(rows) == golden else replace(told, base=told.base + 0.5)

    monkeypatch.setattr(Explainer, "attribute", wrong)
    with pytest.raises(NotExplainable, match=r"\(0.5 beside it\)"):
        explain(release, frame)


def test_what_cannot_be_explained_is_a_note(tmp_path: Path) -> None:
    hinge = {**PARAMETERS["xgboost"], "objective": "binary:hinge"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PARAMETERS, "xgboost", hinge)
        pipeline = fitted("heart_disease", "xgboost")
    release, frame = write(tmp_path / "r", "heart_disease", "xgboost", pipeline=pipeline), frame_of("heart_disease")
    told = explain(release, frame, release)
    assert told.effects is None and told.drift is None and len(told.importance) == 13
    assert "no logistic function" in told.notes[0]
    draw_explanations(told, release, tmp_path)
    assert not (tmp_path / "effects.png").exists() and (tmp_path / "importance.png").exists()


def test_the_champion_is_explained_on_the_same_rows(tmp_path: Path) -> None:
    frame = frame_of("heart_disease")
    champion = write(tmp_path / "a", "heart_disease", "xgboost")
    challenger = write(tmp_path / "b", "heart_disease", "logistic_regression")
    told = explain(challenger, frame, champion)
    assert told.drift is not None and 0 < told.drift < 0.6, "other families, same truth"
    assert told.champion == mean_effects(champion, Explainer.of(champion), frame)
    assert explain(champion, frame, champion).drift == 0
    fields = told.told()
    evaluation = Evaluation.model_validate({**evaluation_of().model_dump(), **fields})
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
    assert evaluation.effects_scale == "log-odds"


def test_a_champion_that_reads_other_columns_has_no_effects_here(tmp_path: Path) -> None:
    config, frame = noise(80)
    champion = write(tmp_path / "a", "heart_disease", "logistic_regression")
    told = explain(release_of(tmp_path / "b", config, frame), frame, champion)
    assert told.drift is None and told.effects is not None
    assert "the rows lack 13 columns that it reads" in told.notes[0]


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_terms_that_make_a_class_are_named_with_their_sign(family: Any, tmp_path: Path) -> None:
    config, frame = letters()
    release = release_of(tmp_path / "r", config, frame, family)
    told = token_effects(release, Explainer.of(release), frame)
    assert list(told) == ["no", "yes"] and len(told["yes"]) <= TOKENS
    assert told["no"] == {term: -effect for term, effect in told["yes"].items()}
    strongest = next(iter(told["yes"]))
    assert {"refund", "broken", "late", "thanks", "great", "fast"} & set(strongest.split())
    for term, effect in told["yes"].items():
        if {"refund", "broken", "late"} & set(term.split()):
            assert effect > 0, term
    assert token_effects(release, Explainer.of(release), frame) == told


def test_every_class_of_many_has_its_terms(tmp_path: Path) -> None:
    release, frame = write(tmp_path / "r", "pipeline_errors", "logistic_regression"), frame_of("pipeline_errors")
    told = explain(release, frame)
    assert list(told.tokens) == list(release.schema.labels)
    assert all(0 < len(terms) <= TOKENS for terms in told.tokens.values())
    draw_explanations(told, release, tmp_path)
    assert json.loads((tmp_path / "tokens.json").read_text()) == told.tokens
    with Image.open(tmp_path / "tokens.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
    assert not (tmp_path / "dependence").exists(), "a text has no axis"


def test_dependence_is_drawn_for_numbers_dates_and_categories(tmp_path: Path) -> None:
    release, frame = write(tmp_path / "r", "houses", "linear_regression"), frame_of("houses")
    draw_explanations(explain(release, frame), release, tmp_path)
    drawn = sorted((tmp_path / "dependence").iterdir())
    assert [path.name for path in drawn] == [f"{n:02d}.png" for n in range(1, 7)]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 3_000 for path in drawn)


def test_names_that_look_like_formulas_are_drawn(tmp_path: Path) -> None:
    name = r"a $\frac{ <b> $"
    frame = noise(80)[1].rename(columns={"a": name})
    release = release_of(tmp_path / "r", toy({name: {"type": "number"}, "b": {"type": "number"}}), frame)
    draw_explanations(explain(release, frame), release, tmp_path)
    assert (tmp_path / "effects.png").stat().st_size > 3_000


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"importance_drift": 0.1}, "passed", "0.1, at most 0.3 is asked"),
        ({"importance_drift": 0.31}, "failed", "0.31, at most 0.3 is asked"),
        ({}, "failed", "was not measured"),
    ],
)
def test_a_gate_may_name_the_drift(changes: dict[str, Any], verdict: str, words: str) -> None:
    config = config_of(gates={"importance_drift": {"max": 0.3, "blocking": False}})
    require_gates(config)
    told = judge(config, against(1, 0.5, 0.9, **changes), package_of(2), 1)
    gate = next(gate for gate in told.gates if gate.name == "importance_drift")
    assert (gate.verdict, told.decision) == (verdict, "promoted")
    assert words in gate.reason
    first = judge(config, evaluation_of(), package_of(1), None)
    assert next(gate.verdict for gate in first.gates if gate.name == "importance_drift") == "skipped"
    with pytest.raises(ConfigError, match="importance_drift"):
        require_gates(config_of(gates={"drift_of_importance": {"max": 1}}))
