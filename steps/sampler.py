"""Proposing configurations: hyperopt's TPE over families and their parameters, one seeded proposal at a time."""

import hashlib
import math
from typing import Any

from models.config import Family, Parameter, Scalar
from steps.families import Candidates, plain


class Sampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) over one space of families and parameters.

    The seed of a proposal depends on the model's seed and the proposal's number only, so that proposals depend on
    nothing but the scores that were told before: `fmin` and its `Trials` cannot be continued from a record.
    """

    def __init__(self, space: Candidates, seed: int, *, maximise: bool) -> None:
        """Build the space.

        Args:
            space: Family to parameter to its range or constant.
            seed: The model's seed.
            maximise: Whether larger scores are better.
        """
        from hyperopt import Trials, hp
        from hyperopt.base import Domain

        branches = [{"family": family, "params": _branch(family, params)} for family, params in space.items()]
        self._space = hp.choice("family", branches)
        self._domain = Domain(lambda _: 0.0, self._space)
        self._trials = Trials()
        self._seed = seed
        self._sign = -1.0 if maximise else 1.0
        self._open: dict[int, Any] = {}

    def propose(self, number: int) -> tuple[Family, dict[str, Scalar | None]]:
        """The configuration of trial `number`, given the scores told so far."""
        from hyperopt import space_eval, tpe

        document = tpe.suggest([number], self._domain, self._trials, trial_seed(self._seed, number), verbose=False)[0]
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
