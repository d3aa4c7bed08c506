"""Proposing configurations: hyperopt's TPE over families and their parameters, one seeded proposal at a time."""

import hashlib
import math
from typing import Any

from models.config import Family, Parameter
from models.section import Scalar
from steps.families import Candidates, plain

# Of n trials, GOOD * sqrt(n) count as good. hyperopt's 0.25 makes that 2 of 50, too few when some are still running.
GOOD = 0.5


class Sampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) over one space of families and parameters.

    The seed of a proposal depends on the model's seed and the proposal's number only, so that proposals depend on
    nothing but the scores that were told before: `fmin` and its `Trials` cannot be continued from a record.
    The first 20 are random.
    """

    def __init__(self, candidates: Candidates, seed: int, *, maximise: bool) -> None:
        """Build the space.

        Args:
            candidates: Family to parameter to its range or constant.
            seed: The model's seed.
            maximise: Whether larger scores are better.
        """
        from hyperopt import Trials
        from hyperopt.base import Domain

        self._space = space(candidates)
        self._domain = Domain(lambda _: 0.0, self._space)
        self._trials = Trials()
        self._seed = seed
        self._sign = -1.0 if maximise else 1.0
        self._open: dict[int, Any] = {}

    def propose(self, number: int) -> tuple[Family, dict[str, Scalar | None]]:
        """The configuration of trial `number`, given the scores told so far."""
        from hyperopt import space_eval, tpe

        seed = trial_seed(self._seed, number)
        document = tpe.suggest([number], self._domain, self._trials, seed, gamma=GOOD, verbose=False)[0]
        self._open[number] = document
        drawn = {label: values[0] for label, values in document["misc"]["vals"].items() if values}
        chosen = space_eval(self._space, drawn)
        return chosen["family"], plain(chosen["params"])

    def tell(self, number: int, score: float | None) -> None:
        """Report the score of a proposal; None when it failed."""
        from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK

        document = self._open.pop(number)
        document["state"] = JOB_STATE_DONE
        if score is None or not math.isfinite(score):
            document["result"] = {"status": STATUS_FAIL}
        else:
            document["result"] = {"status": STATUS_OK, "loss": self._sign * score}
        self._trials.insert_trial_docs([document])
        self._trials.refresh()


def trial_seed(seed: int, number: int) -> int:
    """The seed of one proposal, in 0..2**31-1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big") >> 1


def space(candidates: Candidates) -> Any:
    """hyperopt's search space: one of the families, with its parameters."""
    from hyperopt import hp

    branches = [{"family": family, "params": _branch(family, params)} for family, params in candidates.items()]
    return hp.choice("family", branches)


def _branch(family: Family, params: Any) -> dict[str, Any]:
    return {
        name: _range(f"{family}.{name}", value) if isinstance(value, Parameter) else value
        for name, value in params.items()
    }


def _range(label: str, parameter: Parameter) -> Any:
    from hyperopt import hp

    if parameter.choice is not None:
        return hp.choice(label, list(parameter.choice))
    if parameter.uniform is not None:
        return hp.uniform(label, *parameter.uniform)
    if parameter.loguniform is not None:
        return hp.loguniform(label, *map(math.log, parameter.loguniform))
    if parameter.integer is None:
        raise TypeError(f"{label}: a parameter of an unknown form")
    return hp.uniformint(label, *parameter.integer)
