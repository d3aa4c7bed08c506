"""Tuning as a run does it against plain hyperopt: `fmin(tpe.suggest)` over `cross_val_score` of the same pipelines.

`python -m benchmarks.tuning [--rounds N] [--trials N]` prints a table and, as its last line, one JSON object. Both
search heart_disease's own space (three families, 50 configurations, its seed) over the same five folds of the rows of
its default source; patience and time end neither. Ours is `tune_model` whole: other processes are started and each
trial is recorded in MLflow. Plain hyperopt fits with `n_jobs=-1`; its worker processes are warm. Rounds alternate, the
ratio is the median over neighbouring ones. Each side's best configuration is then scored by five full folds, both by
the same `cross_val_score`.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stacks.home import environment

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from models.config import Family, ModelConfig

LIMIT = 0.6


@dataclass(frozen=True)
class Problem:
    """What both search: a model, its training rows, their target as codes and the fold of each."""

    config: "ModelConfig"
    train: "pd.DataFrame"
    target: "np.ndarray[Any, Any]"
    folds: "np.ndarray[Any, Any]"

    def score(self, family: "Family", params: dict[str, Any]) -> float:
        """Mean score of a configuration's whole pipeline, fitted anew on each fold."""
        from sklearn.model_selection import PredefinedSplit, cross_val_score

        from steps.families import build_pipeline

        pipeline = build_pipeline(self.config, family, params)
        split = PredefinedSplit(self.folds)
        return float(
            cross_val_score(pipeline, self.train, self.target, cv=split, scoring=self.config.metric, n_jobs=-1).mean()
        )


def problem(trials: int) -> Problem:
    """heart_disease's training rows, typed, split and folded as a run does it."""
    from models.config import Layer, load_model
    from steps.crossval import cross_validation
    from steps.ingest import ingest_frame
    from steps.split import split_frame

    over = Layer("benchmark", {"tuning": {"trials": trials, "patience": 10**6, "seconds": 1e9}})
    config = load_model("heart_disease", [over]).config
    train = split_frame(config, ingest_frame(config).frame).train
    folds = cross_validation(config, train)
    return Problem(config, train, folds.target, folds.folds)


def plain(given: Problem) -> tuple["Family", dict[str, Any]]:
    """The best configuration that hyperopt finds by itself."""
    import numpy as np
    from hyperopt import Trials, fmin, space_eval, tpe

    from steps.families import candidates
    from steps.sampler import space

    searched = space(candidates(given.config))
    best = fmin(
        lambda chosen: -given.score(chosen["family"], chosen["params"]),
        searched,
        algo=tpe.suggest,
        max_evals=given.config.tuning.trials,
        trials=Trials(),
        rstate=np.random.default_rng(given.config.seed),
        show_progressbar=False,
        verbose=False,
    )
    chosen = space_eval(searched, best)
    return chosen["family"], chosen["params"]


def ours(given: Problem) -> tuple["Family", dict[str, Any]]:
    """The best configuration that a run of ours finds."""
    from steps.tune import tune_model

    result = tune_model(given.config, given.train)
    return result.family, dict(result.params)


def main() -> int:
    """Measure, print, and return 1 when the ratio is above the limit or our best is the worse one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=50)
    given = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        home = Path(folder)
        os.environ.update(environment(home))
        (home / "mlflow").mkdir(parents=True)
        for name in ("hyperopt", "mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        found, seconds = measure(problem(given.trials), given.rounds)
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["hyperopt"], strict=True))
    print(f"{'search':<12}{'median s':>10}{'fastest s':>11}{'best':>12}  configuration")
    for name, (score, family, params) in found.items():
        times = seconds[name]
        print(f"{name:<12}{statistics.median(times):>10.1f}{min(times):>11.1f}{score:>12.6f}  {family} {params}")
    print(
        f"ratio {ratio:.2f} (at most {LIMIT}); best score {found['ours'][0] - found['hyperopt'][0]:+.6f} (at least 0)"
    )
    figures = {f"{name}_s": round(statistics.median(times), 2) for name, times in seconds.items()}
    scores = {f"{name}_best": round(score, 6) for name, (score, _, _) in found.items()}
    told = {"bench": "tuning", "rounds": given.rounds, "trials": given.trials, **figures, **scores}
    print(json.dumps({**told, "ratio": round(ratio, 4), "limit": LIMIT}))
    return 0 if ratio <= LIMIT and found["ours"][0] >= found["hyperopt"][0] else 1


def measure(given: Problem, rounds: int) -> tuple[dict[str, tuple[float, str, dict[str, Any]]], dict[str, list[float]]]:
    """Each side's best configuration with its score, and its seconds in each round."""
    from stacks import registry

    registry.initialise()
    given.score("logistic_regression", {})
    seconds: dict[str, list[float]] = {"hyperopt": [], "ours": []}
    found: dict[str, tuple[float, str, dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, find in (("hyperopt", plain), ("ours", ours)):
            start = time.perf_counter()
            family, params = find(given)
            seconds[name].append(time.perf_counter() - start)
            if name not in found:
                found[name] = (given.score(family, params), family, params)
    return found, seconds


if __name__ == "__main__":
    sys.exit(main())
