"""Which running trials are not worth their time, judged from what all trials have recorded so far.

Optuna's pruners decide. They were made for trials that report and ask in turn; here many lie side by side and are looked
at again and again, so each running trial is judged as the last to arrive: at its latest evaluation, against every other
trial that got as far, however that one ended. A verdict then depends on the histories alone, neither on the order in
which they came in nor on what an earlier process saw.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from dpo_lab.sweep.search_optuna import load_optuna

WORST = -1e300  # stands for what is no finite number; finite itself, so that a median can be taken
NAMES = {
    "val/rewards/accuracies": "held-out accuracy",
    "val/rewards/margins": "held-out reward margin",
    "val/logratios/margins": "held-out log-ratio margin",
    "val/loss": "held-out loss",
    "val/kl": "held-out KL",
}
SHARES = {2: "half", 3: "third", 4: "quarter", 5: "fifth"}


@dataclass(frozen=True)
class History:
    """What a trial has recorded of the metric."""

    id: str
    number: int
    state: str
    values: dict[int, float]  # by step


@dataclass
class _Record:
    """A trial in the study, and what of it was handed over."""

    trial: Any  # Optuna's
    raw: dict[int, float] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)  # higher is better
    rung: str = ""  # ASHA: the one that the latest step has completed


class Pruner:
    """Ends trials by asynchronous successive halving (asha), the median rule (median), or never (none).

    Args:
        name: asha | median | none.
        metric: smaller is better where its name ends in loss or kl.
        first_step: none is ended before it.
        startup: trials, the judged one among them, that must have got as far before one is ended there.
        factor: of asha: one trial in so many goes on.
    """

    def __init__(self, name: str, *, metric: str, first_step: int, startup: int, factor: int) -> None:
        self.name, self.metric, self.startup, self.factor = name, metric, startup, factor
        self.first_step = max(1, first_step)  # step 0 is before training, where all trials are alike
        self.sign = -1 if metric.endswith(("loss", "kl")) else 1
        self._records: dict[str, _Record] = {}
        self._study: Any = None
        if name != "none":
            optuna = load_optuna(f"prune={name}")
            self._study = optuna.create_study(
                direction="maximize",
                sampler=optuna.samplers.RandomSampler(seed=0),  # has nothing to do; TPE would look through all trials
                pruner=self._optunas(optuna.pruners),
            )

    def look(self, histories: Sequence[History]) -> dict[str, str]:
        """The running trials that should end, each with the reason in words."""
        if self.name == "none":
            return {}
        for history in histories:
            self._follow(history)
        judge = self._by_rung if self.name == "asha" else self._by_median
        shown = {h.id for h in histories}
        trials = {key: self._stored(one) for key, one in self._records.items() if key in shown}
        verdicts = {h.id: judge(h, trials) for h in histories if h.state == "running" and self._records[h.id].values}
        return {key: reason for key, reason in verdicts.items() if reason}

    def _optunas(self, pruners: Any) -> Any:
        if self.name == "asha":  # not bootstrap_count: Optuna ends the trials that come before it is reached
            return pruners.SuccessiveHalvingPruner(min_resource=self.first_step, reduction_factor=self.factor)
        return pruners.MedianPruner(
            n_startup_trials=0, n_warmup_steps=self.first_step, n_min_trials=max(1, self.startup - 1)
        )

    def _follow(self, history: History) -> None:
        """Hand over what is new of a trial; one that has begun again is another trial to the study."""
        record = self._records.get(history.id)
        if record is not None and record.raw == history.values:
            return
        values = {step: self._turned(value) for step, value in sorted(history.values.items()) if step > 0}
        if record is None or not _goes_on(record.values, values):
            record = self._records[history.id] = _Record(self._study.ask())
        for step, value in values.items():
            if step not in record.values:
                self._report(record, step, value)
        record.raw, record.values = dict(history.values), values

    def _report(self, record: _Record, step: int, value: float) -> None:
        record.trial.report(value, step)
        if self.name == "asha":  # alone it completes every rung that it has reached, and Optuna notes the value there
            before = self._stored(record)
            self._study.pruner.prune(_Against(self._study, []), before)
            completed = self._stored(record).system_attrs.keys() - before.system_attrs.keys()
            record.rung = max(completed, key=lambda rung: int(rung.rpartition("_")[2]), default="")

    def _by_rung(self, history: History, trials: Mapping[str, Any]) -> str:
        """Against the trials that have completed the rung which the latest step completed."""
        rung = self._records[history.id].rung
        others = [t for key, t in trials.items() if key != history.id and rung in t.system_attrs]
        if not rung or len(others) + 1 < self.startup:
            return ""
        judged = copy.copy(trials[history.id])
        judged.system_attrs = {key: value for key, value in judged.system_attrs.items() if key != rung}
        if not self._study.pruner.prune(_Against(self._study, others), judged):
            return ""
        reached = sorted((t.system_attrs[rung] for t in (*others, trials[history.id])), reverse=True)
        kept = max(1, len(reached) // self.factor)
        value, bar = self._told(history, trials[history.id].system_attrs[rung], reached[kept - 1])
        share = SHARES.get(self.factor, f"1/{self.factor}")
        best = f"among the best {share} of" if len(reached) >= self.factor else "the best of"
        return f"{value} at step {judged.last_step} is not {best} {len(reached)} trials there ({bar})"

    def _by_median(self, history: History, trials: Mapping[str, Any]) -> str:
        """The best value so far against the median of the others at the latest step."""
        judged = copy.copy(trials[history.id])
        step = judged.last_step
        others = [t for key, t in trials.items() if key != history.id and step in t.intermediate_values]
        if len(others) + 1 < self.startup:
            return ""
        values = judged.intermediate_values
        best = WORST if values[step] == WORST else max(values.values())  # once a trial is no number, its past is void
        judged.intermediate_values = {step: best}
        if not self._study.pruner.prune(_Against(self._study, others), judged):
            return ""
        value, bar = self._told(history, best, median(t.intermediate_values[step] for t in others))
        return f"{value} at best up to step {step} is worse than the median of {len(others)} other trials there ({bar})"

    def _stored(self, record: _Record) -> Any:
        return self._study._storage.get_trial(record.trial._trial_id)

    def _turned(self, value: float) -> float:
        return self.sign * value if math.isfinite(value) else WORST

    def _told(self, history: History, value: float, bar: float) -> tuple[str, str]:
        """Two values as the user knows them, in as many digits as tell them apart."""
        name = NAMES.get(self.metric, self.metric)
        if value == WORST:
            shown = f"{self.sign * bar:.3g}" if bar > WORST / 4 else "nan"  # half of it: the middle of two values
            return f"{name} {history.values[max(history.values)]}", shown
        digits = next((d for d in range(3, 17) if f"{value:.{d}g}" != f"{bar:.{d}g}"), 17)
        return f"{name} {self.sign * value:.{digits}g}", f"{self.sign * bar:.{digits}g}"


class _Against:
    """A study as a pruner sees it that compares a trial with those given, and with no others.

    Optuna's Hyperband shows its brackets to the pruner within it in the same way.
    """

    def __init__(self, study: Any, trials: list[Any]) -> None:
        self._study, self._trials = study, trials

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[Any]:
        """The trials to compare with. To the median rule a trial counts as soon as it got as far, not once it is done."""
        return self._trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


def _goes_on(before: Mapping[int, float], after: Mapping[int, float]) -> bool:
    """Whether a history only got longer."""
    last = max(before, default=0)
    return all(after.get(step) == value for step, value in before.items()) and all(
        step in before or step > last for step in after
    )
