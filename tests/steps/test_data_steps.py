"""ingest, validate and split as ZenML runs them: kept frames, cache keys, and nothing opened by an import."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steps.caching import parameter
from steps.frames import FrameMaterializer, content_digest
from tests.steps.tables import make_config, make_table, write


def _run(config: Any, reference: int | None = None) -> Any:
    from zenml import pipeline

    from steps.ingest import ingest, source_digest
    from steps.split import split
    from steps.validate import validate

    @pipeline
    def data(ingest_part: str, validate_part: str, split_part: str, digest: str) -> None:
        raw, _, _ = ingest(ingest_part, "file", digest)
        validate(validate_part, raw, reference)
        split(split_part, raw, after="validate")

    parts = (("seed", "split"), ("seed", "split", "validation", "monitoring"), ("seed", "split", "sample_size"))
    return data(*(parameter(config.part(*keys)) for keys in parts), digest=source_digest(config))


def test_what_a_step_forgets_is_not_taken_for_its_answer_again(tmp_path: Path) -> None:
    """Drift from a champion whose rows cannot be read: no reason to stop, and tried again with the next run."""
    config = make_config(write(tmp_path, make_table(200)))
    first, second = _run(config, reference=99), _run(config, reference=99)
    assert set(_status(first).values()) == {"completed"}
    assert _status(second) == {"ingest": "cached", "validate": "completed", "split": "cached"}


def _status(run: Any) -> dict[str, str]:
    return {name: step.status.value for name, step in run.steps.items()}


def test_the_three_steps_run_are_cached_and_see_changed_data(tmp_path: Path) -> None:
    table = make_table(200)
    table.loc[:20, "colour"] = np.nan
    columns = make_config().model_dump(mode="json")["columns"]
    columns["colour"]["missing"] = 0.2
    config = make_config(write(tmp_path, table), columns=columns)
    first = _run(config)
    assert set(_status(first).values()) == {"completed"}
    train, test = (first.steps["split"].outputs[name][0].load() for name in ("train", "test"))
    assert len(train) + len(test) == 200
    assert train["when"].dtype == "datetime64[ns]" and train["size"].dtype == np.float64
    assert all(isinstance(cell, str) or np.isnan(cell) for cell in train["colour"]), "missing text stays NaN"
    assert first.steps["validate"].outputs["report"][0].load().score == 100
    assert set(_status(_run(config)).values()) == {"cached"}
    table.loc[0, "size"] = 12.25
    write(tmp_path, table)
    assert _status(_run(config))["ingest"] == "completed", "another CSV is another cache key"
    write(tmp_path, table, lineterminator="\r\n")
    again = _status(_run(config))
    assert again == {"ingest": "completed", "validate": "cached", "split": "cached"}, "the same rows, written otherwise"
    assert _status(_run(config.model_copy(update={"description": "other"}))) == dict.fromkeys(again, "cached")


def test_importing_the_data_steps_opens_nothing(tmp_path: Path) -> None:
    """ZenML resolves a materializer class at import, and so opens its database, unless it is given as a source."""
    code = "import steps.ingest, steps.validate, steps.split, steps.draft"
    env = {
        "ZENML_CONFIG_PATH": str(tmp_path / "zenml"),
        "PATH": "",
        "HOME": str(tmp_path),
        "GAUNTLET_HOME": str(tmp_path / "g"),
    }
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=root)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == []


@pytest.mark.parametrize("rows", [0, 3])
def test_frames_come_back_as_they_were_kept(rows: int, tmp_path: Path) -> None:
    from zenml.client import Client

    frame = pd.DataFrame(
        {
            "n": [1.5, np.nan, -1.0],
            "t": pd.Series(["ü", np.nan, ""], dtype=object),
            "gone": pd.Series([np.nan] * 3, dtype=object),
            "d": pd.to_datetime(["2024-01-01", None, "1990-05-05"]),
        }
    ).head(rows)
    store = Client().active_stack.artifact_store
    uri = f"{store.path}/frames-{rows}"
    store.makedirs(uri)
    kept = FrameMaterializer(uri, store)
    kept.save(frame)
    loaded = kept.load(pd.DataFrame)
    pd.testing.assert_frame_equal(loaded, frame, check_exact=True)
    assert kept.compute_content_hash(loaded) == kept.compute_content_hash(frame)
    assert kept.extract_metadata(frame) == {"rows": rows, "columns": 4}


def test_the_content_digest_sees_values_order_and_names() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": pd.Series(["x", "yz"], dtype=object)})
    digests = [
        content_digest(frame, ["a", "b"]),
        content_digest(frame, ["b", "a"]),
        content_digest(frame.rename(columns={"a": "c"}), ["c", "b"]),
        content_digest(frame.iloc[::-1], ["a", "b"]),
        content_digest(frame.assign(b=["xy", "z"]), ["a", "b"]),
        content_digest(frame.assign(b=["x", np.nan]), ["a", "b"]),
    ]
    assert len(set(digests)) == 6
    assert digests[0] == content_digest(frame.copy(), ["a", "b"])
