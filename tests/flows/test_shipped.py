"""Every shipped YAML as it is: its own tuning and gates on its default generator, to a champion that answers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from bentos.release import Release
from models.config import models_dir
from stacks.handover import reign_of
from stacks.ledger import Ledger
from steps.serve import serve_briefly
from tests.flows.conftest import Place


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_every_shipped_model_is_promoted_and_answers(place: Place, proof: Callable[[str, object, str], None]) -> None:
    names = sorted(path.stem for path in models_dir().glob("*.yaml") if path.stem != "base")
    done = dataclasses.replace(place, models=models_dir()).gauntlet("run", "--all")
    assert done.code == 0 and done.json is not None, done.printed[-3000:]
    results = done.json["results"]
    assert {result["model"]: result["verdict"] for result in results} == dict.fromkeys(names, "promoted"), results
    ledger = Ledger(f"sqlite:///{place.home / 'gauntlet.db'}")
    for result in results:
        champion = reign_of(ledger.history(result["model"])).champion
        assert champion is not None and champion.release_uri is not None
        golden = Release.open(Path(champion.release_uri.removeprefix("file://"))).golden[0]
        _, (answer,) = serve_briefly(result["bento"], [golden.inputs], place.home / "bentoml" / "bentos")
        withheld = answer.get("abstained", False)
        assert answer["prediction"] == (None if withheld else golden.prediction), result["model"]
    figures = ", ".join(f"{one['model']} {one['metric']} {one['score']:.3f}" for one in results)
    proof(
        "`gauntlet run --all` over the shipped YAMLs: all promoted, each packaged Release gives a golden answer",
        len(names),
        f"{done.json['seconds']:.0f} s; {figures}",
    )
