import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bentos.messages import Answer, BatchAnswer, requests_of, row_of
from bentos.release import Answers, Release
from bentos.schema import Schema
from bentos.served import Served
from bentos.wire import Request, Teller, Wire, batch_record, single_record
from models.config import Column
from tests.bentos.samples import config_of, frame_of, write

MOST = 5
SCHEMA = Schema(
    model="wire",
    task="regression",
    target="y",
    inputs={
        "size m²": Column(type="number"),
        "rooms": Column(type="integer", missing=0.5),
        "heated %d": Column(type="boolean", missing=0.5),
        "kind": Column(type="category"),
        "place": Column(type="category", missing=0.5, categories=(1, 2)),
        "note": Column(type="text", missing=0.5),
        "sold": Column(type="datetime", missing=0.5),
    },
)
REQUESTS = requests_of(SCHEMA, MOST)
FEATURES = b'{"size m\xc2\xb2":1.5,"rooms":3,"heated %d":true,"kind":"x","place":1,"note":"n","sold":"2026-01-02"}'
# What a mutation puts in the place of a value, or anywhere.
ODD = [
    *(b"null", b"true", b"false", b"0", b"-0", b"-0.0", b"1", b"1.0", b"7", b"20", b"21", b"1e2", b"1E400", b"-1e999"),
    *(b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b".5", b"1.", b"0x1", b"1_0", b"9" * 19, b"9" * 30, b"9" * 400),
    *(
        b"9" * 5_000,
        b"1e-400",
        b"123456789.123456789123456789",
        b'"x"',
        b'""',
        b'"1"',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
    ),
    *(
        b'"\\ud83d\\ude00"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\x00"',
        b'"\\u0000"',
        b'"\t"',
        b'"\\x"',
        b"'x'",
        b"[]",
        b"{}",
    ),
    *(b"[1]", b'{"a":1}', b"[" * 2_000, b'"' + b"e" * 201 + b'"', '"é日本😀"'.encode(), b'"2026-01-02T03:04:05Z"'),
    *(b'"2026-01-02"', b'"2026-02-30T00:00"', b'"2026-01-02T03:04:05.123456789Z"', b'"now"', b"", b",", b"}", b":"),
    *(b'"rooms":4,', b'"rooms":"4",', b'"other":1,', b'"field_0":1,', b'"explain":3,', b'"entity":"e",', b'"at":null,'),
    *(
        b'"rooms":null,',
        b'"kind":true,',
        b'"kind":false,',
        b'"kind":null,',
        b'"size m\\u00b2":2,',
        b" ",
        b"\xef\xbb\xbf",
    ),
]


@pytest.fixture(scope="module")
def wire() -> Wire:
    wire = Wire.of(SCHEMA, MOST)
    assert wire is not None
    return wire


def _careful(body: bytes, batch: bool) -> Any:
    """What the pydantic classes make of a body: rows, effects, entity, time; None where they refuse."""
    try:
        asked: Any = (REQUESTS.batch if batch else REQUESTS.single).model_validate_json(body)
    except ValidationError:
        return None
    rows = [row_of(row) for row in asked.instances] if batch else [row_of(asked.features)]
    return rows, asked.explain, asked.entity, asked.at


def _quick(wire: Wire, body: bytes, batch: bool) -> Any:
    asked = wire.batch(body) if batch else wire.single(body)
    return None if asked is None else ([list(row) for row in asked.rows], asked.explain, asked.entity, asked.at)


def _body(batch: bool, more: bytes = b"") -> bytes:
    if batch:
        return b'{"instances":[%b,%b]%b}' % (FEATURES, FEATURES, more)
    return b'{"features":%b%b}' % (FEATURES, more)


MORE = b',"explain":3,"entity":"p-1","at":"2026-01-02T03:04:05Z"'
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+|[][{}:,]')


def _mutated(rng: random.Random, body: bytes) -> bytes:
    for _ in range(rng.randint(1, 2)):
        tokens = list(TOKEN.finditer(body))
        if not tokens:
            return body
        token = rng.choice(tokens)
        way = rng.randrange(5)
        if way == 0:
            body = body[: token.start()] + rng.choice(ODD) + body[token.end() :]
        elif way == 1:
            body = body[: token.start()] + rng.choice(ODD) + body[token.start() :]
        elif way == 2:
            body = body[: token.start()] + body[token.end() :]
        elif way == 3:
            other = rng.choice(tokens)
            body = body[: token.start()] + other.group() + body[token.end() :]
        else:
            at = rng.randrange(len(body))
            body = body[:at] + bytes([rng.randrange(256)]) + body[at + rng.randrange(2) :]
    return body


@pytest.mark.parametrize("batch", [False, True])
def test_nothing_is_accepted_that_the_classes_refuse_and_what_is_accepted_is_the_same(wire: Wire, batch: bool) -> None:
    rng = random.Random(20261121)
    both, refused = 0, 0
    for _ in range(6_000):
        body = _mutated(rng, _body(batch, MORE if rng.random() < 0.5 else b""))
        careful, quick = _careful(body, batch), _quick(wire, body, batch)
        if quick is None:
            refused += careful is None
            continue
        assert careful is not None, body[:500]
        assert repr(quick) == repr(careful), body[:500]  # -0.0 and 0.0, 1 and 1.0, True and 1 differ in it
        both += 1
    assert both > 150 and refused > 3_000


@pytest.mark.parametrize("batch", [False, True])
def test_every_odd_value_in_every_place(wire: Wire, batch: bool) -> None:
    body, taken = _body(batch, MORE), 0
    for token in TOKEN.finditer(body):
        for odd in ODD:
            for rest in (token.end(), token.start()):
                changed = body[: token.start()] + odd + body[rest:]
                if (quick := _quick(wire, changed, batch)) is not None:
                    taken += 1
                    assert repr(quick) == repr(_careful(changed, batch)), changed[:500]
    assert taken > 100


@pytest.mark.parametrize(
    "more", [b"", MORE, b',"explain":true', b',"explain":false,"entity":null', b',"at":"2026-01-02 03:04"']
)
def test_the_ordinary_is_accepted(wire: Wire, more: bytes) -> None:
    for batch in (False, True):
        quick = _quick(wire, _body(batch, more), batch)
        assert quick is not None and quick == _careful(_body(batch, more), batch)
    asked = wire.single(_body(False, MORE))
    assert asked is not None
    assert asked.rows == [(1.5, 3.0, True, "x", 1, "n", "2026-01-02")]
    assert (asked.explain, asked.entity, asked.at) == (3, "p-1", "2026-01-02T03:04:05Z")


def test_what_may_miss_may_be_left_out(wire: Wire) -> None:
    asked = wire.single('{"features":{"kind":1.5,"size m²":2}}'.encode())
    assert asked is not None and asked.rows == [(2.0, None, None, 1.5, None, None, None)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"instances":[]}',
        b'{"instances":[' + b",".join([FEATURES] * (MOST + 1)) + b"]}",
        b'{"instances":' + b"[" * 100_000,
        b'{"features":' + b'{"a":' * 100_000,
        FEATURES.replace(b'"n"', b'"' + b"x" * 1_000_001 + b'"').join([b'{"features":', b"}"]),
    ],
)
def test_bodies_of_another_shape_or_size_are_not_accepted(wire: Wire, body: bytes) -> None:
    assert wire.single(body) is None and wire.batch(body) is None


@pytest.mark.parametrize("character", ["x", "é", "日", "😀"])
def test_the_longest_texts_are_counted_as_the_classes_count_them(wire: Wire, character: str) -> None:
    for length in (200, 201):
        body = _body(False, f',"entity":"{character * length}"'.encode())
        assert (_quick(wire, body, False) is None) == (_careful(body, False) is None) == (length > 200)
    for length in (1_000_000, 1_000_001):
        body = _body(False).replace(b'"n"', f'"{character * length}"'.encode())
        assert (wire.single(body) is None) == (_careful(body, False) is None) == (length > 1_000_000)


def test_one_column_is_a_row_too() -> None:
    schema = SCHEMA.model_copy(update={"inputs": {"note": Column(type="text", missing=1.0)}})
    wire = Wire.of(schema, 2)
    assert wire is not None
    asked = wire.single(b'{"features":{}}')
    assert asked is not None and asked.rows == [(None,)]


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\tb"])
def test_a_name_that_msgspec_does_not_take_goes_the_careful_way(name: str) -> None:
    schema = SCHEMA.model_copy(update={"inputs": {name: Column(type="number")}})
    assert Wire.of(schema, 2) is None


@pytest.mark.parametrize(
    ("at", "fits"),
    [
        *(("2026-01-02T03:04:05+01:00", True), ("2026-01-02T03:04", True), ("2026-01-02T03:04:05.5Z", True)),
        *(("2026-01-02", False), ("20260102T030405", False), ("2026-01-02T25:00", False), ("yesterday", False)),
        *(("2026-01-02T03:04:05Z ", False), ("٢٠٢٦-01-02T03:04", False), ("2026-W01-1T00:00", False), ("", False)),
        *(("1970-01-01T00:00:00+14:00", True), ("2199-12-31T23:59:59-14:00", True), ("1969-12-31T23:59", False)),
        *(("2200-01-01T00:00", False), ("0001-01-01T00:00:00+14:00", False), ("9999-12-31T23:59:59-14:00", False)),
    ],
)
def test_a_time_has_date_and_time(wire: Wire, at: str, fits: bool) -> None:
    body = _body(False, f',"at":"{at}"'.encode())
    assert (wire.single(body) is not None) == (_careful(body, False) is not None) == fits


def _served(release: Release) -> Served:
    return Served.load(release, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("releases")


@pytest.mark.parametrize(
    ("model", "family", "abstain"),
    [("heart_disease", "logistic_regression", None), ("wine", "xgboost", 0.9), ("houses", "random_forest", None)],
)
def test_answers_are_those_of_the_careful_path(model: str, family: Any, abstain: float | None, folder: Path) -> None:
    config = config_of(model)
    config = config.model_copy(update={"serving": config.serving.model_copy(update={"abstain_below": abstain})})
    release = write(folder / model, model, family, config=config)
    answers, teller = release.answer(frame_of(model)), Teller.of(release, 12, "champion")
    expected = _served(release)._told(answers)
    for row, answer in enumerate(expected):
        answer |= {"prediction_id": f"b1-{row}", "flags": []}
    told = teller.answers(answers, "b1")
    assert json.loads(told) == expected
    assert [list(answer) for answer in json.loads(told)] == [list(answer) for answer in expected]
    BatchAnswer.model_validate_json(b'{"predictions":' + told + b"}")
    parts = (answers.values, answers.probabilities, answers.abstained)
    first = Answers(*(None if part is None else part[:1] for part in parts))  # type: ignore[arg-type]
    alone = json.loads(teller.answer(first, "s1"))
    assert alone == expected[0] | {"prediction_id": "s1"}
    assert Answer.model_validate(alone)


def test_explanations_are_told_with_their_answers(folder: Path) -> None:
    release = write(folder / "explained", "wine", "logistic_regression")
    served = Served.load(release, 12)
    frame = frame_of("wine").head(3)
    answers = release.answer(frame)
    assert served.explainer is not None
    whys = served.explainer.told(served.explainer.explain(frame, answers, 2))
    teller = Teller.of(release, 12, "champion")
    told = json.loads(teller.answers(answers, "b", whys))
    assert [{key: answer[key] for key in why} for answer, why in zip(told, whys, strict=True)] == whys
    one = Answers(answers.values[:1], answers.probabilities[:1])  # type: ignore[index]
    alone = json.loads(teller.answer(one, "b-0", whys[0]))
    assert alone == told[0] and list(alone)[-3:] == ["flags", "contributions", "explanation"]


@pytest.mark.parametrize(("probability", "level"), [(0.0, "low"), (0.3299, "low"), (0.33, "medium"), (0.66, "high")])
def test_risk_is_the_level_that_the_probability_reached(probability: float, level: str, folder: Path) -> None:
    if not (folder / "risk").exists():
        write(folder / "risk", "heart_disease", "logistic_regression")
    teller = Teller.of(Release.open(folder / "risk"), 1, "canary")
    answers = Answers(np.array(["healthy"], dtype=object), np.array([[1 - probability, probability]]))
    told = json.loads(teller.answer(answers, "x"))
    assert (told["risk"], told["variant"], told["version"]) == (level, "canary", 1)


def test_labels_may_hold_anything(folder: Path) -> None:
    frame = frame_of("wine").copy()
    config = config_of("wine")
    names = dict(zip(sorted(frame[config.target.column].unique()), ['50 %d "a"', "日本\\", "%b"], strict=True))
    frame[config.target.column] = frame[config.target.column].map(names)
    target = config.target.model_copy(update={"labels": tuple(names.values()), "map": None})
    release = write(
        folder / "labels", "wine", "random_forest", config=config.model_copy(update={"target": target}), train=frame
    )
    told = json.loads(Teller.of(release, 1, "champion").answers(release.answer(frame), "b"))
    assert {answer["prediction"] for answer in told} == set(names.values())
    assert set(told[0]["probabilities"]) == set(names.values())


def test_a_number_that_is_none_is_no_answer(folder: Path) -> None:
    release = write(folder / "infinite", "houses", "linear_regression")
    with pytest.raises(ValueError, match="no finite number"):
        Teller.of(release, 1, "champion").answer(Answers(np.array([np.inf]), None), "x")


def test_records_hold_inputs_and_answers() -> None:
    row = (1.5, None, True, 'x"', 1, "é", None)
    asked = Request([row], None, None, None)
    record = {"inputs": dict(zip(SCHEMA.inputs, row, strict=True)), "answer": {"prediction": 1}}
    assert json.loads(single_record(tuple(SCHEMA.inputs), asked, b'{"prediction":1}')) == record
    dated, at = replace(asked, at="2026-11-21T16:30:00Z"), {"at": "2026-11-21T16:30:00Z"}
    assert json.loads(single_record(tuple(SCHEMA.inputs), dated, b'{"prediction":1}')) == record | at
    assert json.loads(batch_record(("x",), [(1,)], b"[1]", dated.at)).items() >= at.items()
    assert json.loads(batch_record(tuple(SCHEMA.inputs), [row, row], b'[{"prediction":1},{"prediction":2}]')) == {
        "columns": list(SCHEMA.inputs),
        "inputs": [list(row), list(row)],
        "answers": [{"prediction": 1}, {"prediction": 2}],
    }
