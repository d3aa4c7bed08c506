"""prefect.yaml: written from the models, and what a hand left in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import deployments
from flows.deployments import HEADER, prefect_file, render_deployments
from models.config import load_model, model_names
from models.errors import ConfigError
from tests.flows.conftest import TOY, Invoke, Place, toy_frame


@pytest.fixture
def clone(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose models are those of its own folder, with one model and its prefect.yaml."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "toy.yaml").write_text(yaml.safe_dump({**TOY, "schedule": {"cron": "0 5 * * *"}}))
    monkeypatch.setenv("GAUNTLET_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(deployments, "clone_dir", lambda: tmp_path)
    deployments.write_deployments()
    return tmp_path


def _content(clone: Path) -> dict[str, Any]:
    content = yaml.safe_load((clone / "prefect.yaml").read_text())
    assert isinstance(content, dict)
    return content


def _write(clone: Path, content: Mapping[str, Any]) -> None:
    (clone / "prefect.yaml").write_text(yaml.safe_dump(dict(content)))


def test_the_file_of_this_clone_is_what_its_models_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAUNTLET_MODELS", raising=False)
    text = prefect_file().read_text()
    assert text == render_deployments(prefect_file()).text, "run `make deployments`"
    entries = yaml.safe_load(text)["deployments"]
    assert [entry["name"] for entry in entries] == [*model_names(), "all", *model_names(), *model_names()]
    after = [entry["entrypoint"] for entry in entries[len(model_names()) + 1 :]]
    assert after == [f for f in ("flows.predict.predict", "flows.monitor.monitor") for _ in model_names()]
    assert str(Path.home()) not in text and str(prefect_file().parent) not in text


def test_an_entry_says_model_code_pool_and_schedule(clone: Path) -> None:
    assert (clone / "prefect.yaml").read_text().startswith(HEADER)
    toy, everything, scoring, _ = _content(clone)["deployments"]
    assert toy["parameters"] == {"model": "toy"}
    assert toy["work_pool"] == {"name": "gauntlet"}
    assert toy["schedules"] == [{"cron": "0 5 * * *", "timezone": "UTC", "active": True}]
    assert everything["entrypoint"] == "flows.train_all.train_all"
    assert (scoring["entrypoint"], scoring["parameters"]) == ("flows.predict.predict", {"model": "toy"})
    assert "schedules" not in scoring


def test_checks_that_are_due_together_are_one_schedule(clone: Path) -> None:
    watching = _content(clone)["deployments"][-1]
    assert (watching["entrypoint"], watching["parameters"]) == ("flows.monitor.monitor", {"model": "toy"})
    due = {schedule["slug"]: (schedule["cron"], schedule["parameters"]["checks"]) for schedule in watching["schedules"]}
    assert due == {
        "performance-quality": ("0 3 * * *", ["performance", "quality"]),
        "drift": ("0 4 * * 1", ["drift"]),
        "prediction-drift": ("0 5 1 * *", ["prediction_drift"]),
        "fairness": ("0 6 1 1,4,7,10 *", ["fairness"]),
    }
    nightly = {"checks": {"drift": {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}, "quality": {"cron": None}}}
    (clone / "models" / "toy.yaml").write_text(yaml.safe_dump({**TOY, "monitoring": nightly}))
    assert deployments.write_deployments() == ("overwrote train/toy: schedules", "overwrote monitor/toy: schedules")
    due = {schedule["slug"]: schedule["timezone"] for schedule in _content(clone)["deployments"][-1]["schedules"]}
    assert due == {"performance": "UTC", "drift": "Europe/Berlin", "prediction-drift": "UTC", "fairness": "UTC"}


def test_twice_changes_nothing(clone: Path) -> None:
    before = (clone / "prefect.yaml").read_text()
    assert deployments.write_deployments() == ()
    assert (clone / "prefect.yaml").read_text() == before


def test_a_changed_value_is_overwritten_and_that_is_said(clone: Path) -> None:
    content = _content(clone)
    content["deployments"][0]["schedules"][0]["cron"] = "* * * * *"
    content["deployments"][0]["tags"] = ["mine"]
    _write(clone, content)
    assert deployments.write_deployments() == ("overwrote train/toy: tags, schedules",)
    assert _content(clone)["deployments"][0]["schedules"][0]["cron"] == "0 5 * * *"


def test_what_a_hand_added_stays(clone: Path) -> None:
    own = {"name": "toy-nightly", "entrypoint": "flows.train.train", "parameters": {"model": "toy", "source": "file"}}
    other = {"name": "toy", "entrypoint": "elsewhere.py:flow"}
    content = _content(clone)
    content["deployments"] = [own, *content["deployments"], other]
    content["build"] = [{"some.step": {"key": "value"}}]
    _write(clone, content)
    assert deployments.write_deployments() == ("kept your own entry 'toy-nightly'", "kept your own entry 'toy'")
    after = _content(clone)
    assert after["build"] == content["build"]
    assert after["deployments"][4:] == [own, other]


def test_a_model_that_is_gone_takes_its_entry_along(clone: Path) -> None:
    (clone / "models" / "other.yaml").write_text(yaml.safe_dump({**TOY, "name": "other"}))
    assert deployments.write_deployments() == ("added train/other", "added predict/other", "added monitor/other")
    (clone / "models" / "other.yaml").unlink()
    assert deployments.write_deployments() == (
        "took out train/other: there is no such model",
        "took out predict/other: there is no such model",
        "took out monitor/other: there is no such model",
    )


@pytest.mark.parametrize(
    "text",
    [
        "deployments: [unclosed",
        "- a\n- list\n",
        "deployments: {a: mapping}\n",
        "deployments: [text]\n",
        "pull: 1\npull: 2\n",
    ],
    ids=["no YAML", "a list", "no list of deployments", "an entry that is text", "a key twice"],
)
def test_a_file_that_cannot_be_read_is_refused_and_left_alone(clone: Path, text: str) -> None:
    (clone / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"prefect\.yaml.*delete the file and run `make deployments` again"):
        deployments.write_deployments()
    assert (clone / "prefect.yaml").read_text() == text


def test_new_writes_the_entry(clone: Path, invoke: Invoke) -> None:
    toy_frame().to_csv(clone / "some.csv", index=False)
    done = invoke(["new", "fresh", "--data", str(clone / "some.csv"), "--target", "ill"])
    assert done.code == 0, done.printed
    assert [entry["name"] for entry in _content(clone)["deployments"]] == ["fresh", "toy", "all", *["fresh", "toy"] * 2]
    assert load_model("fresh").config.name == "fresh"


def test_new_leaves_it_alone_for_another_folder_of_models(
    clone: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_frame().to_csv(clone / "some.csv", index=False)
    monkeypatch.setenv("GAUNTLET_MODELS", str(tmp_path / "elsewhere"))
    before = (clone / "prefect.yaml").read_text()
    done = invoke(["new", "fresh", "--data", str(clone / "some.csv"), "--target", "ill"])
    assert done.code == 0, done.printed
    assert (clone / "prefect.yaml").read_text() == before
