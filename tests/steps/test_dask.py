"""Real Dask workers beside one process: the same search, a Release of the same format, the same figures."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from bentos.release import Release
from flows import backends
from models.config import ModelConfig
from models.errors import ConfigError, WorkError
from steps.cluster import Cluster, cluster
from steps.evaluate import Evaluation, evaluate_release, evaluation_of
from steps.evaluate_parts import score
from steps.families import one_thread
from steps.partitions import Partitions
from steps.split_parts import part
from steps.train import cv_metrics, train_release
from steps.train_parts import describe, fit_boosted, train_partitions
from steps.tune import TuningResult, search, search_sample
from tests.steps.learning import QUICK
from tests.steps.partitioned import ingested, parquet_config, plain, raw_table, write_partitions

ROWS = 3_000


@dataclass(frozen=True)
class Learnt:
    """What workers made of a few thousand rows."""

    config: ModelConfig
    train: Partitions
    test: Partitions
    sample: pd.DataFrame
    tuning: TuningResult
    release: Release
    evaluation: Evaluation
    looked: pd.DataFrame


def whole(data: Partitions) -> pd.DataFrame:
    return pd.concat([data.read(one) for one in data.parts], ignore_index=True)


@pytest.fixture(scope="module")
def dask() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAUNTLET_DASK_WORKERS", "2")
        with cluster("test") as running:
            yield running


@pytest.fixture(scope="module")
def learnt(dask: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    folder = tmp_path_factory.mktemp("dask")
    source = write_partitions(folder / "source", raw_table(ROWS), 4)
    config = parquet_config(
        source, search_rows=800, metric="roc_auc", tuning={"trials": 4, "folds": 3, "candidates": QUICK}
    )
    raw = ingested(config, folder / "raw").frame
    train, test = part(dask.each, config, raw, str(folder / "train"), str(folder / "test"))
    sample = search_sample(dask.each, config, train)
    tuning = search(config, sample, dask=dask)
    boosted = tuning.model_copy(update={"family": "xgboost", "params": {"n_estimators": 10, "max_depth": 3}})
    pipeline = fit_boosted(dask, config, boosted.params, train, sample)
    from bentos.release import write_release

    release = write_release(
        folder / "release",
        pipeline=pipeline,
        config=config,
        train=sample,
        metrics=cv_metrics(boosted),
        data_digest="d" * 64,
        trials=4,
        evidence={},
        whole=describe(dask, config, train),
    )
    scored = score(dask, release, train, test, release, 1)
    return Learnt(config, train, test, sample, tuning, release, evaluation_of(release, scored, 99.0, 1), scored.looked)


def test_the_search_is_that_of_one_process_on_the_sample(learnt: Learnt) -> None:
    assert 650 < len(learnt.sample) < 950
    alone = search(learnt.config, learnt.sample)
    assert plain(alone) == plain(learnt.tuning)


def test_the_release_is_described_by_all_rows_and_answers_as_the_booster_of_the_workers(learnt: Learnt) -> None:
    release, frame = Release.open(learnt.release.directory), whole(learnt.train)
    assert release.digest and release.training.rows == len(frame) == len(learnt.train)
    from bentos.release import column_figures

    exact = {name: column_figures(frame[name], learnt.config.columns[name].type) for name in learnt.config.columns}
    kept = release.reference_summary
    assert kept["rows"] == len(frame) and {name: kept["columns"][name] for name in exact} == exact
    assert len(release.golden) == 20
    assert release.pipeline.predict_proba(frame).shape == (len(frame), 2)


def test_boosting_on_workers_is_as_good_as_in_memory(learnt: Learnt, tmp_path: Path) -> None:
    boosted = learnt.tuning.model_copy(update={"family": "xgboost", "params": {"n_estimators": 10, "max_depth": 3}})
    in_memory = learnt.config.model_copy(update={"compute": "memory"})
    alone = Release.open(train_release(in_memory, whole(learnt.train), boosted, "d" * 64, tmp_path / "release"))
    test = whole(learnt.test)
    with one_thread():
        ours, theirs = (release.answer(test).probabilities for release in (learnt.release, alone))
    assert ours is not None and theirs is not None
    assert np.abs(ours - theirs).mean() < 0.02
    found = evaluate_release(alone, whole(learnt.train), test, 99.0)
    ends = found.intervals["roc_auc"]
    assert ends.low <= learnt.evaluation.challenger["roc_auc"] <= ends.high


def test_figures_are_those_of_one_process_on_the_same_rows(learnt: Learnt) -> None:
    alone = evaluate_release(learnt.release, learnt.sample, whole(learnt.test), 99.0, learnt.release, 1)
    ours, theirs = plain(learnt.evaluation), plain(alone)
    assert ours["notes"] and "plain linear pipeline was fitted on" in ours["notes"][-1]
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different <= {"notes", "dummy"}, {key: (ours[key], theirs[key]) for key in different}
    assert learnt.evaluation.paired is not None and learnt.evaluation.paired.estimate == 0


def test_a_family_that_trains_in_memory_says_so(
    learnt: Learnt, dask: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("steps.train_parts.cluster", lambda _: nullcontext(dask))
    linear = learnt.tuning.model_copy(update={"family": "logistic_regression", "params": {}})
    release = Release.open(train_partitions(learnt.config, learnt.train, linear, "d" * 64, tmp_path / "release"))
    assert release.training.rows == len(learnt.sample)
    said = f"logistic_regression trains in memory: it was fitted on {len(learnt.sample):,} sampled of"
    assert said in caplog.text


def _processing(dask: Cluster) -> list[str]:
    """What the workers are at; `fn` is xgboost's training."""
    return [str(key) for keys in dask.client.processing().values() for key in keys]


def test_work_is_given_up_when_no_worker_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster

    monkeypatch.setattr("steps.cluster.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("steps.cluster.DESERTED_SECONDS", 0.2)
    options: dict[str, object] = {"n_workers": 0, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as empty, Client(empty, set_as_default=False) as client, client.as_current():
        alone = Cluster(client, "score", 0, "")
        with pytest.raises(WorkError, match=r"score: no Dask worker was left for 0\.2 seconds"):
            alone.each(abs, [-1, -2])


def test_a_given_scheduler_s_workers_need_the_same_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with backends.dask_cluster({"GAUNTLET_SECRET": "test-secret"}, workers=1) as address:
        monkeypatch.setenv("GAUNTLET_DASK", address)
        with cluster("score") as given:
            assert given.each(pow, [2, 3], 2) == [4, 9]
            assert given.limit > 0
        monkeypatch.setenv("GAUNTLET_SECRET", "another")
        with (
            pytest.raises(WorkError, match=r"score: Dask workers at .* make other pseudonyms.*GAUNTLET_SECRET"),
            cluster("score"),
        ):
            pass


def test_only_who_has_the_keys_uses_workers_of_this_machine(dask: Cluster) -> None:
    from distributed import Client

    address = dask.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:") and all(worker.startswith("tls://") for worker in dask.workers)
    with pytest.raises((OSError, TypeError)):
        Client(address.replace("tls://", "tcp://"), timeout=1, set_as_default=False)


def _hold(_: int, mebibytes: int) -> int:
    held = []
    for _ in range(mebibytes // 32):
        held.append(np.ones(1 << 22))
        time.sleep(0.05)
    return len(held)


def test_a_worker_at_its_limit_is_named_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DASK_WORKERS", "1")
    monkeypatch.setenv("GAUNTLET_DASK_MEMORY", "512MiB")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with (
        pytest.raises(
            WorkError, match=r"train: a Dask worker was lost.*limit is 0\.5 GiB.*GAUNTLET_DASK_MEMORY"
        ) as raised,
        cluster("train") as running,
    ):
        running.each(_hold, [1], 2_000)
    assert "nothing was kept" in str(raised.value)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.prove
def test_a_worker_lost_while_boosting_ends_the_training_and_the_next_one_succeeds(
    learnt: Learnt, monkeypatch: pytest.MonkeyPatch, proof: Callable[[str, object, str], None]
) -> None:
    monkeypatch.setenv("GAUNTLET_DASK_WORKERS", "2")
    with cluster("train") as running:
        pids = list(running.client.run(os.getpid).values())

        def kill_once_it_boosts() -> None:
            until = time.monotonic() + 240
            while not any(key.startswith("fn-") for key in _processing(running)) and time.monotonic() < until:
                time.sleep(0.1)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_once_it_boosts)
        killer.start()
        with pytest.raises(WorkError, match="train: a Dask worker was lost"):
            fit_boosted(running, learnt.config, {"n_estimators": 200_000, "max_depth": 2}, learnt.train, learnt.sample)
        killer.join()
        running.client.wait_for_workers(2, timeout=60)
    with cluster("train") as running:
        again = fit_boosted(running, learnt.config, {"n_estimators": 3}, learnt.train, learnt.sample)
    assert again.predict_proba(learnt.sample).shape == (len(learnt.sample), 2)
    proof("A Dask worker killed while boosting: a clear failure, and the next training succeeds", 1, "both seen")


def test_a_scheduler_that_does_not_answer_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.cluster.ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("GAUNTLET_DASK", "tcp://127.0.0.1:9")
    with (
        pytest.raises(
            WorkError, match=r"split: no Dask scheduler .* at tcp://127.0.0.1:9 within 1 seconds.*GAUNTLET_DASK"
        ),
        cluster("split"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GAUNTLET_DASK_WORKERS", "none", "is no number of workers"),
        ("GAUNTLET_DASK_MEMORY", "plenty", "is no size"),
        ("GAUNTLET_DASK_MEMORY", "100MiB", "too little"),
    ],
)
def test_settings_of_the_workers_are_checked(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said), cluster("split"):
        pass
