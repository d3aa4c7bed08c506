"""Challengers whose inputs, target or metric are not those of the champion; real Releases on made-up rows."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.frame import to_frame
from bentos.release import Release, write_release
from models.config import ModelConfig
from steps.compare import Comparison, _read_by, compare, meet, unseen
from steps.evaluate import evaluate_release, record
from steps.families import build_pipeline, one_thread
from steps.metrics import compute_metrics
from steps.split import Split, in_test, split_frame
from steps.verdict import judge
from tests.steps.arena import against, package_of
from tests.steps.learning import configured, rows_of, toy
from tests.steps.test_evaluate import released

NUMBERS: dict[str, Any] = {"a": {"type": "number"}, "b": {"type": "number"}}


@lru_cache
def table(rows: int = 12_000) -> pd.DataFrame:
    """Two numbers, a third that says more, and a class that follows them."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(rows, 3)).round(6), columns=["a", "b", "c"])
    told = frame["a"] + 0.5 * frame["b"] + 2 * frame["c"] + rng.normal(size=rows)
    return frame.assign(y=np.where(told > 0, "yes", "no").astype(object))


def numbers(**keys: Any) -> ModelConfig:
    return toy(NUMBERS, **keys)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Release:
    config = numbers()
    return released(tmp_path_factory.mktemp("champion") / "r", config, split_frame(config, table()).train)


def challenge(folder: Path, config: ModelConfig, frame: pd.DataFrame, champion: Release) -> tuple[Release, Comparison]:
    split = split_frame(config, frame)
    challenger = released(folder / "c", config, split.train)
    return challenger, compare(config, challenger, champion, "v1", split.test)


def verdict_on(config: ModelConfig, compared: Comparison) -> Any:
    figures = {
        "rows": compared.rows,
        "champion": compared.champion,
        "challenger_compared": compared.challenger,
        "paired": compared.paired,
        "notes": compared.notes,
    }
    return judge(config, against(1, 0.5, 0.9, "toy", **figures), package_of(2, "toy"), 1)


def test_a_new_optional_column_is_compared_and_wins(champion: Release, tmp_path: Path) -> None:
    config = toy({**NUMBERS, "c": {"type": "number", "missing": 1.0}})
    frame = table().assign(c=table()["c"].where(np.arange(len(table())) % 3 > 0))
    challenger, compared = challenge(tmp_path, config, frame, champion)
    test = split_frame(config, frame).test
    fair = unseen(champion, test)
    assert compared.rows == fair.sum() > 400
    assert compared.champion == compute_metrics(config, ("no", "yes"), test[fair]["y"], champion.answer(test[fair]))
    assert compared.notes == (f"v1 was trained on {len(test) - compared.rows} of {len(test)} test rows",)
    paired = compared.paired
    assert paired is not None and compared.challenger is not None and compared.champion is not None
    assert paired.estimate == pytest.approx(compared.challenger["accuracy"] - compared.champion["accuracy"])
    assert 0.05 < paired.low < paired.estimate < paired.high
    assert paired.mcnemar_p is not None and paired.mcnemar_p < 1e-6
    assert (paired.rows, paired.resamples) == (compared.rows, 1000)
    judged = evaluate_release(challenger, split_frame(config, frame).train, test, 100, champion, 1)
    assert judged.differences == compared.differences(), "on the compared rows, not on all test rows"
    assert set(judged.differences) == set(compared.challenger)
    assert verdict_on(config, compared).decision == "promoted"
    assert challenger.schema.inputs.keys() == {"a", "b", "c"}


def test_without_the_column_that_the_champion_reads_a_person_decides(champion: Release, tmp_path: Path) -> None:
    config = toy({"a": {"type": "number"}, "c": {"type": "number"}})
    _, compared = challenge(tmp_path, config, table().drop(columns="b"), champion)
    assert (compared.rows, compared.champion, compared.paired) == (0, None, None)
    verdict = verdict_on(config, compared)
    assert verdict.decision == "pending"
    assert "v1 cannot be compared: the rows lack 1 columns that it reads: b" in verdict.reason


def test_a_column_that_is_gone_is_read_as_missing_where_the_champion_allows_that(tmp_path: Path) -> None:
    frame = table().assign(e=np.array([f"e{row % 997}" for row in range(len(table()))], dtype=object))
    entity: dict[str, Any] = {"e": {"type": "category", "feature": False}}
    split_by = {"by": "entity", "column": "e"}
    for missing in (0.0, 0.5):
        config = toy({**NUMBERS, **entity, "c": {"type": "number", "missing": missing}}, split=split_by)
        champion = released(tmp_path / f"r{missing}", config, split_frame(config, frame).train)
        config = toy({**NUMBERS, **entity}, split=split_by)
        (tmp_path / str(missing)).mkdir()
        _, compared = challenge(tmp_path / str(missing), config, frame.drop(columns="c"), champion)
        test = split_frame(config, frame).test
        if missing:
            said = champion.answer(test.assign(c=np.nan))
            assert compared.rows == len(test)
            assert compared.champion == compute_metrics(config, ("no", "yes"), test["y"], said)
            assert compared.notes == ("v1 reads c as missing: there is no such column any more",)
        else:
            assert compared.notes == ("v1 cannot be compared: the rows lack 1 columns that it reads: c",)


OPTIONAL: dict[str, Any] = {**NUMBERS, "c": {"type": "number", "missing": 0.5}}


def without_c(
    folder: Path, frame: pd.DataFrame, columns: dict[str, Any] | None = None, **keys: Any
) -> tuple[Release, ModelConfig, Comparison]:
    """A champion that may do without column c, the configuration that has it no more, and how they compare."""
    old = toy(OPTIONAL if columns is None else columns)
    champion = released(folder / "r", old, split_frame(old, frame).train)
    new = toy({name: column for name, column in old.model_dump(mode="json")["columns"].items() if name != "c"}, **keys)
    _, compared = challenge(folder, new, frame.drop(columns="c"), champion)
    return champion, new, compared


def test_without_an_optional_column_the_champion_meets_rows_that_are_none_of_its_own(tmp_path: Path) -> None:
    """Its split hashes the column that is gone; the rows that it learnt are those that its Release keeps."""
    frame = table()
    champion, config, compared = without_c(tmp_path, frame)
    test = split_frame(config, frame).test
    learnt = split_frame(champion.config, frame).train
    fair = test[~test.set_index(["a", "b"]).index.isin(learnt.set_index(["a", "b"]).index)]
    assert compared.rows == len(fair) > 400 and len(fair) < len(test) / 3
    assert compared.champion == compute_metrics(
        config, ("no", "yes"), fair["y"], champion.answer(fair.assign(c=np.nan))
    )
    assert compared.notes == (
        "v1 reads c as missing: there is no such column any more",
        f"v1 learnt the values in the columns that are left of {len(test) - len(fair)} of {len(test)} test rows",
    )
    assert verdict_on(config, compared).decision in ("promoted", "kept")


def test_a_row_that_equals_a_learnt_one_in_what_is_left_of_it_is_not_compared(tmp_path: Path) -> None:
    coarse = table().assign(a=table()["a"].round(0), b=table()["b"].round(0))
    _, config, compared = without_c(tmp_path, coarse)
    verdict = verdict_on(config, compared)
    assert (verdict.decision, compared.rows) == ("pending", 0)
    rows = len(split_frame(config, coarse).test)
    assert "v1 learnt the values in the columns that are left of" in verdict.reason and str(rows) in verdict.reason
    assert "rows are left to compare on, at least 200 are asked" in verdict.reason


def test_a_champion_of_which_only_a_sample_of_its_rows_is_kept_waits_for_a_person(tmp_path: Path) -> None:
    _, config, compared = without_c(tmp_path, table(26_000))
    verdict = verdict_on(config, compared)
    assert (verdict.decision, compared.rows) == ("pending", 0)
    said = "the rows lack 1 columns that its split goes by (c), and its Release keeps 20,000 of its 2"
    assert said in verdict.reason and "training rows: which rows it learnt cannot be told" in verdict.reason


def test_without_a_column_at_least_200_rows_are_asked_though_all_can_be_read(tmp_path: Path) -> None:
    _, config, compared = without_c(tmp_path, table(2_000))
    verdict = verdict_on(config, compared)
    assert (verdict.decision, compared.rows) == ("pending", 0)
    assert "rows are left to compare on, at least 200 are asked" in verdict.reason
    (tmp_path / "few").mkdir()
    _, config, compared = without_c(tmp_path / "few", table(2_000), promotion={"min_rows": 50})
    assert 50 <= compared.rows < 200 and verdict_on(config, compared).decision in ("promoted", "kept")


def test_texts_are_told_by_the_ends_that_a_release_keeps(tmp_path: Path) -> None:
    """Of 4,800 rows 1,666 characters a text are kept: the numbers at the beginning are lost, those at the end stay."""
    words = np.array([f"{row} {'word ' * 400}{row}" for row in range(6_000)], dtype=object)
    frame = table(6_000).assign(note=words, c=table(6_000)["c"])
    columns = {"note": {"type": "text"}, "c": OPTIONAL["c"]}
    champion, config, compared = without_c(tmp_path, frame, columns)
    learnt = set(split_frame(champion.config, frame).train["note"])
    assert not learnt & set(champion.reference()["note"]), "they are cut"
    assert compared.rows == sum(note not in learnt for note in split_frame(config, frame).test["note"]) > 200


def test_a_whole_evaluation_against_a_champion_without_a_column_goes_on_to_its_verdict(tmp_path: Path) -> None:
    frame, old = table(6_000), toy(OPTIONAL)
    champion = released(tmp_path / "r", old, split_frame(old, frame).train)
    config, rest = numbers(), table(6_000).drop(columns="c")
    split = split_frame(config, rest)
    challenger = released(tmp_path / "c", config, split.train)
    judged = record(
        evaluate_release(challenger, split.train, split.test, 100, champion, 1), challenger, split.test, champion
    )
    assert judged.champion is not None and judged.paired is not None and judged.rows >= 200
    verdict = judge(config, judged, package_of(2, "toy"), 1)
    assert verdict.decision == "kept", "it lost the column that says most, and the champion was scored without it"
    assert f"on {judged.rows} rows that neither was trained on" in verdict.reason


def spelled(every: int) -> pd.DataFrame:
    """The table with words in column a in one row of `every`."""
    cells = [f"word{row % 3}" if row % every == 0 else str(value) for row, value in enumerate(table()["a"])]
    return table().assign(a=np.array(cells, dtype=object))


def test_of_a_retyped_column_the_champion_is_scored_on_the_rows_it_can_read(champion: Release, tmp_path: Path) -> None:
    config = toy({**NUMBERS, "a": {"type": "category"}})
    frame = spelled(4)
    _, compared = challenge(tmp_path, config, frame, champion)
    test = split_frame(config, frame).test
    theirs = to_frame(test, champion.config.columns).frame.assign(y=test["y"])
    readable = theirs[theirs["a"].notna()]
    fair = readable[in_test(champion.config, readable)]
    assert compared.rows == len(fair) >= 200
    assert compared.champion == compute_metrics(config, ("no", "yes"), fair["y"], champion.answer(fair))
    unread = len(test) - len(readable)
    assert compared.notes[0] == f"v1 cannot read {unread} of {len(test)} test rows: 'a' holds no number in {unread}"
    assert "test rows that it can read" in compared.notes[1]
    trained = pd.util.hash_pandas_object(split_frame(champion.config, table()).train[["a", "b", "y"]], index=False)
    assert not set(trained) & set(pd.util.hash_pandas_object(fair[["a", "b", "y"]], index=False))


def written(column: str, cells: Any) -> pd.DataFrame:
    """The table with a column as it is written: text cells."""
    return table().assign(**{column: np.array(list(cells), dtype=object)})


CODES = [f"{row % 500:03d}" for row in range(12_000)]


@pytest.mark.parametrize(
    ("theirs", "ours", "cells", "least"),
    [
        ({"type": "category"}, {"type": "number"}, CODES, 0),
        ({"type": "number"}, {"type": "number", "missing_values": [7], "missing": 1.0}, CODES, 200),
        ({"type": "category"}, {"type": "category", "categories": list(range(500))}, CODES, 0),
        ({"type": "number"}, {"type": "text"}, CODES, 200),
        ({"type": "integer"}, {"type": "number"}, CODES, 200),
        ({"type": "boolean"}, {"type": "number"}, [str(row % 2) for row in range(12_000)], 0),
    ],
)
def test_no_row_that_the_champion_learnt_passes_for_new_by_being_typed_otherwise(
    theirs: dict[str, Any], ours: dict[str, Any], cells: list[str], least: int, tmp_path: Path
) -> None:
    """Rows are told by their numbers, which both read alike; the champion's own split says which ones it learnt."""
    raw = written("c", cells)
    old, new = (toy({**NUMBERS, "c": column}) for column in (theirs, ours))
    old_frame, new_frame = (to_frame(raw, c.columns).frame.assign(y=raw["y"]) for c in (old, new))
    split = split_frame(old, old_frame)
    champion = released(tmp_path / "r", old, split.train)
    test = split_frame(new, new_frame).test
    met = meet(new, released(tmp_path / "c", new, split_frame(new, new_frame).train), champion, test, least=0)
    assert met.left >= least and (met.left > 0) == (least > 0)
    assert met.champion is None or met.left == len(met.champion.values)
    learnt = set(zip(split.train["a"], split.train["b"], strict=True))
    read = _read_by(champion, new.columns, test)
    left = read.frame[read.whole]
    fair = left[unseen(champion, left)]
    assert len(fair) == met.left and not learnt & set(zip(fair["a"], fair["b"], strict=True))
    if "missing_values" in ours:
        (unread,) = met.unread.items()
        assert unread == (("c", "what another type or other missing_values made of a value"), test["c"].isna().sum())


def test_too_few_rows_that_the_champion_can_read_wait_for_a_person(champion: Release, tmp_path: Path) -> None:
    config = toy({**NUMBERS, "a": {"type": "category"}}, promotion={"min_rows": 500})
    _, compared = challenge(tmp_path, config, spelled(4), champion)
    verdict = verdict_on(config, compared)
    assert (verdict.decision, compared.rows, compared.paired) == ("pending", 0, None)
    assert "rows are left to compare on, at least 500 are asked" in verdict.reason
    assert "'a' holds no number" in verdict.reason


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"labels": ["yes", "no"]}, "its target.labels is another one"),
        ({"map": {"no": "no", "yes": "yes"}}, "its target.map is another one"),
        ({"column": "answer"}, "its target is 'y', the challenger's is 'answer'"),
    ],
)
def test_another_target_waits_for_a_person(
    target: dict[str, Any], words: str, champion: Release, tmp_path: Path
) -> None:
    config = numbers(target={"column": "y", "labels": ["no", "yes"], **target})
    frame = table().rename(columns={"y": config.target.column})
    _, compared = challenge(tmp_path, config, frame, champion)
    verdict = verdict_on(config, compared)
    assert verdict.decision == "pending"
    assert words in verdict.reason


def test_another_task_waits_for_a_person(champion: Release, tmp_path: Path) -> None:
    config = numbers(task="regression", metric="mae", target={"column": "c"}, tuning={"candidates": {}})
    split = split_frame(config, table())
    challenger = released(tmp_path / "c", config, split.train, "linear_regression")
    compared = compare(config, challenger, champion, "v1", split.test)
    assert compared.champion is None
    assert compared.notes == ("v1 cannot be compared: it does classification, the challenger regression",)


def test_another_metric_is_the_challengers(champion: Release, tmp_path: Path) -> None:
    config = toy({**NUMBERS, "c": {"type": "number"}}, metric="log_loss")
    _, compared = challenge(tmp_path, config, table(), champion)
    assert "v1 was made for accuracy; both are judged by log_loss" in compared.notes
    assert compared.paired is not None and compared.paired.metric == "log_loss"
    assert compared.paired.low > 0


def narrow(folder: Path) -> tuple[Release, Split, pd.DataFrame]:
    """A champion that fails on categories it does not know, the rows it was split from, and test rows with such."""
    columns: dict[str, Any] = {**NUMBERS, "kind": {"type": "category"}}
    config = toy(columns)
    frame = table().assign(kind=np.where(table()["a"] > 0, "up", "down").astype(object))
    split = split_frame(config, frame)
    pipeline = build_pipeline(config, "logistic_regression", {})
    pipeline.named_steps["prepare"].transformers[1][1].named_steps["encode"].set_params(handle_unknown="error")
    with one_thread():
        pipeline.fit(split.train, (split.train["y"] == "yes").astype(int).to_numpy())
    champion = write_release(
        folder / "r",
        pipeline=pipeline,
        config=config,
        train=split.train,
        metrics={},
        data_digest="d" * 64,
        trials=1,
        evidence={},
    )
    return champion, split, split.test.assign(kind=np.where(split.test.index % 2, "up", "jane@example.org"))


def test_a_champion_that_fails_on_new_rows_is_a_reason_without_their_values(tmp_path: Path) -> None:
    champion, split, new = narrow(tmp_path)
    config = champion.config
    challenger = released(tmp_path / "c", config, split.train)
    compared = compare(config, challenger, champion, "v1", new)
    verdict = verdict_on(config, compared)
    assert verdict.decision == "pending"
    assert "v1 cannot be compared: it fails on the" in verdict.reason
    assert "with ValueError" in verdict.reason and "jane" not in verdict.reason
    large = split.test.assign(a=1e300)
    assert "numbers that the model cannot compute with" in compare(config, challenger, champion, "v1", large).notes[0]


def test_a_run_against_a_champion_that_fails_on_new_rows_goes_on_to_its_verdict(tmp_path: Path) -> None:
    champion, split, new = narrow(tmp_path)
    config, few, some = champion.config, split.train[:400], new[:300].reset_index(drop=True)
    challenger = released(tmp_path / "c", config, few)
    judged = record(evaluate_release(challenger, few, some, 100, champion, 1), challenger, some, champion)
    assert (judged.champion, judged.champion_effects, judged.importance_drift) == (None, None, None)
    assert judged.effects is not None, "the challenger is explained"
    told = "no effects of the champion: it fails on these rows with ValueError"
    assert any("it fails on the" in note for note in judged.notes) and told in judged.notes
    verdict = judge(config, judged, package_of(2, "toy"), 1)
    assert verdict.decision == "pending" and "jane" not in judged.model_dump_json()


def test_models_of_different_classes_are_scored_by_one_definition(tmp_path: Path) -> None:
    """The Brier score of two classes is halved; a champion that lacks the third must not gain by that."""
    config, rows = configured("wine", metric="brier", gates={}), rows_of("wine")
    two = rows.train[rows.train["target"] != "class_1"].reset_index(drop=True)
    champion = released(tmp_path / "r", config, two)
    compared = compare(config, released(tmp_path / "c", config, rows.train), champion, "v1", rows.test)
    said = champion.answer(rows.test).probabilities
    assert said is not None and compared.champion is not None and compared.challenger is not None
    wide = np.column_stack([said[:, 0], np.zeros(len(said)), said[:, 1]])
    truth = rows.test["target"].to_numpy()[:, None] == np.array(["class_0", "class_1", "class_2"])
    assert compared.champion["brier"] == pytest.approx(float(np.mean(np.sum((wide - truth) ** 2, axis=1))))
    assert compared.paired is not None
    assert compared.paired.estimate == pytest.approx(compared.champion["brier"] - compared.challenger["brier"])
