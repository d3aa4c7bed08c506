"""The course of a search: which configuration comes next and when it ends, by numbers of trials and nothing else.

Trials may be finished in any order, on any number of cores: trial i is proposed from the results of trials 0 to
i - lag, and results are taken in the order of their numbers, so that two searches never differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.config import Family, ModelConfig
from models.section import Scalar
from steps.families import candidates, plain_linear
from steps.metrics import greater_is_better, is_better
from steps.sampler import Sampler
from steps.trials import Scores, Task, Trial, rival

Stop = Literal["trials", "seconds", "patience"]
Configuration = tuple[Family, dict[str, Scalar | None]]


@dataclass(frozen=True)
class Best:
    """The best configuration so far; `folds` are its scores fold by fold."""

    family: Family
    params: dict[str, Scalar | None]
    score: float
    folds: Scores


class Course:
    """What a search has tried, and what it tries next."""

    def __init__(self, config: ModelConfig, linear: Trial) -> None:
        """Begin with the plain linear pipeline, which a tuned configuration has to beat.

        Args:
            config: The model.
            linear: How the plain linear pipeline scored.

        Raises:
            ConfigError: A family or a parameter does not fit the model.
        """
        self._config = config
        self._own = config.evaluation.metrics
        maximise = greater_is_better(config.metric, self._own)
        self._sampler = Sampler(candidates(config), config.seed, maximise=maximise)
        self._linear = linear
        self._bests = [Best(plain_linear(config), {}, float(linear.score or 0.0), linear.folds)]
        self._proposed: list[Configuration] = []
        self._told = 0
        self._ahead: dict[int, Trial] = {}
        self._since_gain = 0
        self.history: list[Trial] = []

    @property
    def best(self) -> Best:
        """The best configuration of the history; the plain linear one unless another scored strictly better."""
        return self._bests[-1]

    @property
    def stopped_by(self) -> Stop | None:
        """What ended the search; None while it goes on."""
        if len(self.history) >= self._config.tuning.trials:
            return "trials"
        return "patience" if self._since_gain >= self._config.tuning.patience else None

    @property
    def left(self) -> int:
        """How many trials there will still be, at most."""
        return self._config.tuning.trials - len(self.history)

    def following(self) -> Task | None:
        """The next configuration to score; None while results that its proposal needs are missing.

        One that was proposed before is finished at once, with what it came to, and the next is looked for.
        """
        while self._may_propose():
            if task := self._propose():
                return task
        return None

    def arrived(self, trial: Trial) -> None:
        """Take a result in, whatever its number; `advance` counts it when its turn comes."""
        self._ahead[trial.number] = trial

    def advance(self) -> Trial | None:
        """Count the next trial, in the order of numbers; None while it is not there, or when the search is over."""
        trial = self._ahead.pop(len(self.history), None) if self.stopped_by is None else None
        if trial is None:
            return None
        self.history.append(trial)
        self._since_gain += 1
        best = self.best
        if trial.score is not None and is_better(self._config.metric, trial.score, best.score, self._own):
            best, self._since_gain = Best(trial.family, trial.params, trial.score, trial.folds), 0
        self._bests.append(best)
        return trial

    def replay(self, trials: Sequence[Trial]) -> bool:
        """Go through the first trials of an earlier search again; False where this one would try something else."""
        for trial in trials:
            if not self._may_propose():
                return False
            self._propose()
            if not _same(self._proposed[trial.number], trial):
                return False
            self.arrived(trial)
            self.advance()
        return True

    def _may_propose(self) -> bool:
        number = len(self._proposed)
        known = self._known(number)
        if self.stopped_by or number >= self._config.tuning.trials or len(self.history) < known:
            return False
        for trial in self.history[self._told : known]:
            self._sampler.tell(trial.number, trial.estimate if trial.dropped_after else trial.score)
        self._told = max(self._told, known)
        return True

    def _propose(self) -> Task | None:
        """Draw the next configuration; None when it was drawn before."""
        number = len(self._proposed)
        family, params = self._sampler.propose(number)
        self._proposed.append((family, params))
        known = self.history[: self._known(number)]
        if again := next((t for t in known if self._proposed[t.number] == (family, params)), None):
            self.arrived(again.model_copy(update={"number": number}))
            return None
        best = self._bests[len(known)]
        against = rival(self._config.metric, [self._linear, *known], family, best.folds, self._own)
        return Task(number, family, params, against)

    def _known(self, number: int) -> int:
        """How many results a proposal may rest on."""
        return max(0, number - self._config.tuning.lag + 1)


def _same(proposed: Configuration, trial: Trial) -> bool:
    """Whether a trial came of a proposal; early stopping may have set its rounds."""
    family, params = proposed
    rounds = {"n_estimators"} if family == "xgboost" else set()
    mine, theirs = ({k: v for k, v in given.items() if k not in rounds} for given in (params, trial.params))
    return family == trial.family and mine == theirs
