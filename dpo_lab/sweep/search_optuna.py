"""A search that learns from the trials so far: Optuna's TPE, asked for one point at a time.

Nothing is stored: the study is rebuilt from the trials at each question, so that a search goes on from any folder.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_lab.runtime.errors import ConfigError, LabError
from dpo_lab.sweep.search import REPEATS, Point, Seen, draw, enumerable, holds, nth, permutation
from dpo_lab.sweep.space import Axis

DIRECTIONS = {"accuracy": "maximize", "margin": "maximize", "kl": "minimize", "loss": "minimize"}
ASKS = 20  # questions to the sampler until it names a new point


class OptunaSearch:
    """The multivariate tree-structured Parzen estimator (TPE), with one objective or several.

    Args:
        axes: what to search.
        objectives: accuracy, margin (higher is better), kl, loss (lower is better); several make a Pareto front.
        seed: of the sampler, together with the number of trials seen: a search that goes on repeats no points.
    """

    def __init__(self, axes: Sequence[Axis], *, objectives: Sequence[str], seed: int) -> None:
        if unknown := [name for name in objectives if name not in DIRECTIONS]:
            raise ConfigError(f"sweeper.objective: {', '.join(unknown)} is none of {', '.join(DIRECTIONS)}.")
        load_optuna("sweeper=optuna")
        self.axes, self.seed = tuple(axes), seed
        self.directions = [DIRECTIONS[name] for name in objectives]
        self.distributions = {axis.key: _distribution(axis) for axis in self.axes}

    def ask(self, seen: Sequence[Seen]) -> Point | None:
        """The next point, none of those seen; None where all of a finite space was seen.

        Running trials count as bad ones (the constant liar), so that trials side by side spread out. Failed ones say
        nothing of the space, and are not asked for again.
        """
        own = [one for one in seen if holds(self.axes, one.point)]
        known = {self._place(one.point) for one in own}
        study = self._study(own, len(seen))
        for _ in range(ASKS):
            params = study.ask(self.distributions).params
            point = {axis.key: _text(axis, params[axis.key]) for axis in self.axes}
            if self._place(point) not in known:
                return point
        return self._other(known, len(seen))

    def _study(self, seen: Sequence[Seen], n: int) -> Any:
        optuna = load_optuna("sweeper=optuna")
        entropy = np.random.SeedSequence([self.seed, n]).generate_state(1)
        sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=int(entropy[0]))
        study = optuna.create_study(directions=self.directions, sampler=sampler)
        study.add_trials([self._trial(one) for one in seen])
        return study

    def _trial(self, one: Seen) -> Any:
        optuna = load_optuna("sweeper=optuna")
        states = optuna.trial.TrialState
        state = {"done": states.COMPLETE, "running": states.RUNNING, "pruned": states.PRUNED}.get(
            one.state, states.FAIL
        )
        values = None
        if state == states.COMPLETE:
            values = one.values
            if values is None or len(values) != len(self.directions) or not all(map(math.isfinite, values)):
                state, values = states.FAIL, None
        steps = {}
        if state == states.PRUNED and len(self.directions) == 1:  # Optuna ranks them by their steps, of one objective
            steps = {step: value for step, value in one.steps.items() if step > 0}
        return optuna.trial.create_trial(
            state=state,
            values=values,
            params=dict(zip(self.distributions, self._place(one.point), strict=True)),
            distributions=self.distributions,
            intermediate_values=steps,
        )

    def _other(self, known: set[tuple[str | float, ...]], n: int) -> Point | None:
        """A new point without the sampler's help, for where it has only old ones."""
        if enumerable(self.axes):
            others = (nth(self.axes, i) for i in permutation(self.axes, self.seed))
        else:
            others = (draw(self.axes, self.seed, n * REPEATS + i) for i in range(REPEATS))
        return next((point for point in others if self._place(point) not in known), None)

    def _place(self, point: Point) -> tuple[str | float, ...]:
        """A point without the ways to write a number: 1e-4 and 0.0001 are one."""
        values = [axis.value(point[axis.key]) for axis in self.axes]
        return tuple(value for value in values if value is not None)


def load_optuna(asked: str) -> Any:
    """The optuna package, its own log lines switched off.

    Args:
        asked: the setting that needs it.

    Raises:
        LabError: it is not installed.
    """
    try:
        import optuna
    except ImportError as e:
        raise LabError(f'{asked} needs the optuna package: pip install "dpo_lab[search]"') from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(axis: Axis) -> Any:
    distributions = load_optuna("sweeper=optuna").distributions
    if axis.values:
        return distributions.CategoricalDistribution(axis.values)
    if axis.integer:
        return distributions.IntDistribution(axis.low, axis.high, log=axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _text(axis: Axis, value: Any) -> str:
    return value if axis.values else axis.text(value)
