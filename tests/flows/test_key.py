"""`gauntlet key`, in this process, on a database of its own."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.command import app
from stacks.ledger import open_ledger
from tests.flows.conftest import Invoke


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'keys.db'}")
    return tmp_path


def test_the_key_is_alone_on_stdout_and_shown_once(database: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(app, ["key", "add", "shop", "--role", "predict"])
    assert made.exit_code == 0
    (secret,) = made.stdout.splitlines()
    assert secret.startswith("gk_") and "Shown this once" in made.stderr
    assert secret[12:] not in made.stderr
    listed = runner.invoke(app, ["key", "list"])
    revoked = runner.invoke(app, ["key", "revoke", "shop"])
    again = runner.invoke(app, ["key", "list"])
    assert "active" in listed.stdout and "revoked" in again.stdout
    assert "It was the last one" in revoked.stdout
    told = listed.output + revoked.output + again.output + json.dumps([repr(e) for e in open_ledger().history("")])
    assert secret[:11] in told and secret[12:] not in told


def test_json_tells_what_the_table_does(invoke: Invoke) -> None:
    made = invoke(["key", "add", "shop", "--role", "admin", "--expires", "90d", "--rate", "0", "--why", "the web shop"])
    assert made.code == 0 and made.json is not None
    secret = made.json.pop("key")
    assert (made.json["name"], made.json["role"], made.json["state"], made.json["rate"]) == (
        "shop",
        "admin",
        "active",
        None,
    )
    ends = datetime.fromisoformat(made.json["expires"]) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < ends <= timedelta(days=90)
    listed = invoke(["key", "list"])
    assert listed.json == {"keys": [made.json]}
    assert secret[12:] not in listed.printed
    revoked = invoke(["key", "revoke", "shop"])
    assert revoked.code == 0 and revoked.json is not None
    assert (revoked.json["state"], revoked.json["keys_left"]) == ("revoked", False)
    assert [entry.why for entry in open_ledger().history("")] == ["the web shop", ""]


def test_without_keys_the_list_says_how_to_make_one(invoke: Invoke) -> None:
    assert invoke(["key", "list"]).json == {"keys": []}
    assert "gauntlet key add" in CliRunner().invoke(app, ["key", "list"]).stdout


@pytest.mark.parametrize(("text", "span"), [("90d", timedelta(days=90)), ("12h", timedelta(hours=12)), ("30m", None)])
def test_expires_is_days_hours_or_minutes(text: str, span: timedelta | None) -> None:
    from flows.key import parse_span

    assert parse_span(text) == (span or timedelta(minutes=30))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["key", "add", "shop", "--role", "predikt"], "did you mean 'predict'? (there is: predict, outcome, admin)"),
        (["key", "add", "taken", "--role", "predict"], "there is a key 'taken'"),
        (["key", "add", "a b", "--role", "predict"], "no name for a key"),
        (["key", "revoke", "takem"], "did you mean 'taken'? (there is: taken)"),
        *(
            (["key", "add", "shop", "--role", "predict", "--expires", text], "write it like 90d, 12h or 30m")
            for text in ("", "0d", "90", "-1d", "1w", "1.5h", "999999d", "90d ", "٣d", "x" * 5_000)
        ),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_to_do(invoke: Invoke, arguments: list[str], said: str) -> None:
    assert invoke(["key", "add", "taken", "--role", "predict"]).code == 0
    done = invoke(arguments)
    assert done.code == 2
    assert done.json is not None and said in done.json["error"]
    assert len(done.json["error"]) < 300
    assert len(invoke(["key", "list"]).json["keys"]) == 1  # type: ignore[index]


def test_a_pasted_key_that_is_unknown_is_not_repeated(invoke: Invoke) -> None:
    done = invoke(["key", "revoke", "gk_abcdefgh_and-this-is-the-secret"])
    assert done.code == 2
    assert "gk_abcdefgh'" in done.printed and "this-is" not in done.printed


def test_a_database_that_cannot_be_used_is_exit_code_1(invoke: Invoke, database: Path) -> None:
    (database / "keys.db").write_text("not a database at all, but long enough to be looked at" * 50)
    done = invoke(["key", "list"])
    assert done.code == 1
    assert "cannot be used" in done.printed
