"""Scoring by partition: challenger, champion and the plain linear pipeline answer the test rows on Dask workers."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bentos.release import Answers, Release
from models.config import ModelConfig
from models.errors import DataError
from steps.cluster import Cluster, cluster
from steps.compare import Comparison, Meeting, concluded, meet, no_figures, other_target
from steps.evaluate import Scored, linear_answer, plain_pipeline
from steps.families import one_thread
from steps.hashes import content_hashes
from steps.partitions import Part, Partitions, counted, public_columns
from steps.train_parts import sampled_only
from steps.tune import search_sample

Array = np.ndarray[Any, Any]

LOOKED_ROWS = 200_000
_OPENED: dict[str, "Packed"] = {}


@dataclass(frozen=True)
class Packed:
    """A Release on its way to a worker, which may have no other way to its files.

    Attributes:
        files: Name to content.
        digest: Of all that.
    """

    files: dict[str, bytes] = field(repr=False)
    digest: str

    @classmethod
    def of(cls, release: Release) -> "Packed":
        """Pack a Release."""
        folder = release.directory
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return cls(files, hashlib.sha256(b"".join(files.values())).hexdigest())

    @cached_property
    def _unpacked(self) -> tuple["tempfile.TemporaryDirectory[str]", Release]:
        folder = tempfile.TemporaryDirectory(prefix="gauntlet-release-", ignore_cleanup_errors=True)
        for name, content in self.files.items():
            path = Path(folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder, Release.open(Path(folder.name))

    @property
    def release(self) -> Release:
        """The Release, verified, opened once in each process."""
        return _OPENED.setdefault(self.digest, self)._unpacked[1]


@dataclass(frozen=True)
class _Said:
    """What was said to one partition's rows; as `Scored`, and how the two models met, or why they cannot."""

    truth: Array
    answers: Answers
    linear: Array
    looked: pd.DataFrame
    chosen: Array
    met: Meeting | str | None


def score_partitions(
    release: Release,
    train: Partitions,
    test: Partitions,
    champion: Release | None = None,
    champion_version: int | None = None,
) -> Scored:
    """Have all test rows answered, a partition at a time.

    Truth and answers of all rows come back, some dozen bytes a row; of the rows themselves a seeded sample of 200,000.

    Args:
        release: The challenger.
        train: Training rows; the plain linear pipeline is fitted on the sample that tuning saw.
        test: Test rows.
        champion: The champion's Release; None for the first model.
        champion_version: Its version.

    Raises:
        WorkError: Workers do not start or are lost.
    """
    with cluster("evaluate") as dask:
        return score(dask, release, train, test, champion, champion_version)


def score(
    dask: Cluster,
    release: Release,
    train: Partitions,
    test: Partitions,
    champion: Release | None = None,
    champion_version: int | None = None,
) -> Scored:
    """Have all test rows answered by workers; see `score_partitions`."""
    config, name = release.config, f"v{champion_version}"
    sample = search_sample(dask.each, config, train)
    found = _answered(dask, config, release, champion, plain_pipeline(config, sample), test)
    answers = _joined([one.answers for one in found])
    chosen = np.concatenate([one.chosen for one in found])
    looked = pd.concat([one.looked for one in found], ignore_index=True)
    return Scored(
        truth=np.concatenate([one.truth for one in found]),
        answers=answers,
        linear=np.concatenate([one.linear for one in found]),
        known=_known(config, train),
        compared=Comparison(0, None, None) if champion is None else _compared(release, champion, name, found),
        train=sample,
        looked=looked,
        said=_taken(answers, chosen),
        notes=tuple(_notes(release, sample, train, looked, test)),
    )


def _answered(
    dask: Cluster, config: ModelConfig, release: Release, champion: Release | None, linear: Any, test: Partitions
) -> list[_Said]:
    asked = champion if champion is not None and not other_target(config, champion.config) else None
    share = min(1.0, LOOKED_ROWS / max(1, len(test)))
    with dask.telling():
        given = (Packed.of(release), Packed.of(asked) if asked else None, linear)
        shared = dask.client.scatter(list(given), broadcast=True, hash=False)
    return dask.each(_ask, test.parts, test, *shared, share)


def _ask(part: Part, test: Partitions, packed: Packed, champion: Packed | None, linear: Any, share: float) -> _Said:
    release = packed.release
    config = release.config
    frame = test.read(part)
    met: Meeting | str | None = None
    with one_thread():
        if champion is not None:
            try:
                met = meet(config, release, champion.release, frame, least=0)
            except DataError as error:
                met = str(error)
        answers, said = release.answer(frame), linear_answer(linear, frame)
    hashes = content_hashes(frame, public_columns(config), f"{config.seed}:evaluate")
    chosen = hashes < np.uint64(share * 2.0**64) if share < 1 else np.ones(len(frame), dtype=bool)
    truth = frame[config.target.column].to_numpy()
    return _Said(truth, answers, said, frame[chosen].reset_index(drop=True), chosen, met)


def _compared(release: Release, champion: Release, name: str, found: Sequence[_Said]) -> Comparison:
    config = release.config
    if other := other_target(config, champion.config):
        return no_figures(f"{name} cannot be compared: {other}")
    if failed := next((one.met for one in found if isinstance(one.met, str)), None):
        return no_figures(f"{name} cannot be compared: {failed}")
    met = [one.met for one in found if isinstance(one.met, Meeting)]
    unread = counted({f"{c}\0{r}": n for (c, r), n in one.unread.items()} for one in met)
    theirs, ours = ([answers for one in met if (answers := getattr(one, who))] for who in ("champion", "challenger"))
    meeting = Meeting(
        rows=sum(one.rows for one in met),
        readable=sum(one.readable for one in met),
        left=sum(one.left for one in met),
        unread={(key.split("\0")[0], key.split("\0")[1]): count for key, count in unread.items()},
        unsplit=met[0].unsplit if met else (),
        truth=np.concatenate([one.truth for one in met]),
        champion=_joined(theirs) if theirs else None,
        challenger=_joined(ours) if ours else None,
    )
    try:
        return concluded(config, release, champion, name, meeting)
    except DataError as error:
        return no_figures(f"{name} cannot be compared: {error}")


def _known(config: ModelConfig, train: Partitions) -> "pd.Series[Any]":
    """The targets of all training rows, in any order."""
    if config.task == "regression":
        return train.column(config.target.column)
    counts = train.classes
    return pd.Series(np.repeat(np.array(list(counts), dtype=object), list(counts.values())))


def _notes(
    release: Release, sample: pd.DataFrame, train: Partitions, looked: pd.DataFrame, test: Partitions
) -> list[str]:
    notes = []
    if release.family != "xgboost":
        notes.append(sampled_only(release.family, len(sample), len(train)))
    if len(sample) < len(train):
        notes.append(f"the plain linear pipeline was fitted on {len(sample):,} sampled of {len(train):,} training rows")
    if len(looked) < len(test):
        notes.append(
            f"behaviour, slices, fairness, explanations, plots: of {len(looked):,} sampled of {len(test):,} test rows"
        )
    return notes


def _joined(parts: Sequence[Answers]) -> Answers:
    shares = [part.probabilities for part in parts if part.probabilities is not None]
    silent = [part.abstained for part in parts if part.abstained is not None]
    return Answers(
        np.concatenate([part.values for part in parts]),
        np.concatenate(shares) if shares else None,
        np.concatenate(silent) if silent else None,
    )


def _taken(answers: Answers, rows: Array) -> Answers:
    shares, silent = answers.probabilities, answers.abstained
    return replace(
        answers,
        values=answers.values[rows],
        probabilities=None if shares is None else shares[rows],
        abstained=None if silent is None else silent[rows],
    )
