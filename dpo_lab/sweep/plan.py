"""Which points of the axes become trials: all of a grid, so many at random, or those that a search asks for."""

from collections.abc import Sequence
from pathlib import Path

from dpo_lab.config.sources import Uncomposable
from dpo_lab.config.sweep_schema import Sweeper
from dpo_lab.runtime.files import read_json
from dpo_lab.sweep.points import Points
from dpo_lab.sweep.search import Point, Seen, grid, random_points
from dpo_lab.sweep.trial import FILE, Live

METRICS = {
    "accuracy": ("val/rewards/accuracies",),
    "margin": ("val/logratios/margins", "val/rewards/margins"),  # the second without a reference
    "kl": ("val/kl",),
    "loss": ("val/loss",),
}


class Plan:
    """The points of a sweep.

    Attributes:
        total: how many trials there will be in all.
    """

    def __init__(self, sweeper: Sweeper, points: Points, folder: Path) -> None:
        self.sweeper, axes = sweeper, points.axes
        self._search = None
        if sweeper.name == "grid":
            self.points = grid(axes, sweeper.points)
        elif sweeper.name == "random":
            assert sweeper.trials is not None  # the door has looked
            self.points = random_points(axes, sweeper.trials, sweeper.seed, _tried(folder, points))
        else:
            from dpo_lab.sweep.search_optuna import OptunaSearch

            self._search = OptunaSearch(axes, objectives=sweeper.objective, seed=sweeper.seed)
            self.points = _tried(folder, points)
        self.total = len(self.points) if self._search is None else max(sweeper.trials or 0, len(self.points))

    def ask(self, trials: Sequence[Live]) -> Point | None:
        """A point beyond those that are known from the start; None where there is none."""
        if self._search is None or len(trials) >= self.total:
            return None
        point = self._search.ask([self._seen(trial) for trial in trials])
        if point is None:  # all of a finite space
            self.total = len(trials)
        return point

    def _seen(self, trial: Live) -> Seen:
        state = trial.state.name if trial.state.name in ("done", "failed", "pruned") else "running"
        values = None
        if state == "done":
            found = [_value(trial.state.metrics or {}, objective) for objective in self.sweeper.objective]
            values = tuple(value for value in found if value is not None)
            if len(values) < len(found):
                state, values = "failed", None
        names = METRICS[self.sweeper.objective[0]]
        steps = next((trial.tail.history[name] for name in names if name in trial.tail.history), {})
        return Seen(trial.asked.point, state, values, steps)


def _value(metrics: dict[str, float], objective: str) -> float | None:
    try:
        return next((float(metrics[name]) for name in METRICS[objective] if name in metrics), None)
    except (TypeError, ValueError):
        return None


def _tried(folder: Path, points: Points) -> list[Point]:
    """The points of the trials that are in the folder, in the order in which they were started.

    Those of other calls may have had the same axes and other fixed settings: at their points this command would train
    something else.
    """
    found: list[tuple[int, Point]] = []
    for file in folder.glob(f"*/{FILE}"):
        content = read_json(file)
        params = content.get("params") if isinstance(content, dict) else None
        if not isinstance(params, dict) or any(axis.key not in params for axis in points.axes):
            continue
        point = {axis.key: str(params[axis.key]) for axis in points.axes}
        try:
            if points.ask(point).id == file.parent.name:
                found.append((_number(content), point))
        except Uncomposable:  # an option that is no longer there
            continue
    return [point for _, point in sorted(found, key=lambda pair: pair[0])]


def _number(content: dict[str, object]) -> int:
    number = content.get("number")
    return number if isinstance(number, int) else 2**31
