"""The winner's command, and what to try next: an axis whose best value lies at its edge, more seeds, what did not end."""

import copy
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.runtime.files import is_locked, short
from dpo_lab.sweep.axes import values_of
from dpo_lab.sweep.leaderboard import best_trial
from dpo_lab.sweep.results import Sweep, Trial
from dpo_lab.sweep.statistics import Answer, Standing
from dpo_lab.sweep.verdict import varied
from dpo_lab.sweep.wording import SEEDS, counted, identity, listed, number_of, number_text, value_text

MOST_COMMANDS = 4
UNENDED = ("failed", "interrupted", "new")  # what the sweep's own command starts again


@dataclass(frozen=True)
class Advice:
    """Something to try, why, and the commands that do it."""

    text: str
    commands: tuple[str, ...] = ()


def trial_command(trial: Trial) -> str:
    """The line that repeats a trial as a run of its own."""
    return shlex.join(["python", "-m", "dpo_lab", *trial.overrides])


def advise(sweep: Sweep, answer: Answer) -> tuple[Advice, ...]:
    """What to try next, what costs least first."""
    advice = [*_go_on(sweep)]
    if answer.standings:
        advice += [*_edges(sweep, answer), *_seeds(sweep, answer)]
    return tuple(advice)


def outward(values: Sequence[float], best: float) -> float | None:
    """The next value beyond the edge at which the best one lies, in the values' own ratio or step.

    The ratio (or step) is the one next to the edge. Values that are all positive stay so, values that are not
    negative stay so, whole numbers stay whole.

    Returns:
        The value; None where the best one is not at an edge, or where there is no such value.
    """
    values = sorted(set(values))
    if len(values) < 2 or best not in (values[0], values[-1]):
        return None
    upwards = best == values[-1]
    near = values[-2] if upwards else values[1]
    if _geometric(values):
        found = best * (best / near)
    else:
        found = best + (best - near)
        if found <= 0 < values[0]:
            found = best / 2
        if found < 0 <= values[0]:
            return None
    if all(float(value).is_integer() for value in values):
        found = float(math.ceil(found) if upwards else math.floor(found))
        if found == best or found == 0 < values[0]:
            return None
    return float(f"{found:.4g}")


def _geometric(values: Sequence[float]) -> bool:
    """Whether neighbours differ by a ratio rather than by a step. Two values tell by their distance."""
    if values[0] <= 0:
        return False
    if len(values) == 2:
        return values[1] / values[0] >= 1.5
    return _spread([math.log(b / a) for a, b in pairwise(values)]) < _spread([b - a for a, b in pairwise(values)])


def _spread(gaps: Sequence[float]) -> float:
    """The gaps' deviation as a share of their mean."""
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean


def _edges(sweep: Sweep, answer: Answer) -> list[Advice]:
    """For each axis whose best value lies at its edge, both in the setting that leads and in the mean over all."""
    best = answer.standings[0]
    advice, trial = [], best_trial(best)
    for key, tried in sweep.axes.items():
        numbers = [number_of(value) for value in tried]
        own = number_of(best.axes.get(key))
        if key in SEEDS or own is None or any(number is None for number in numbers):
            continue
        there = [number for number in numbers if number is not None]
        found = outward(there, own)
        if found is None or _better_inside(answer, key, best.axes[key]):
            continue
        value = int(found) if all(isinstance(v, int) for v in tried) and found.is_integer() else found
        if not _allowed(trial.facts.get("config"), key, value):
            continue
        which = "highest" if own == max(there) else "lowest"
        words = _words(trial, {key: [number_text(value)]} | _seeds_of(best))
        advice.append(
            Advice(
                f"{key}: the best value, {value_text(best.axes[key])}, is the {which} that was tried. Further out is "
                f"{number_text(value)}.",
                (_sweep_command(sweep, trial, words),),
            )
        )
    return advice


def _better_inside(answer: Answer, key: str, value: Any) -> bool:
    """Whether another value of the axis has the highest mean accuracy."""
    own = [effect for effect in answer.effects if effect.axis == key]
    top = max(own, key=lambda effect: (effect.accuracy, effect.margin), default=None)
    return top is not None and value_text(top.value) != value_text(value)


def _seeds(sweep: Sweep, answer: Answer) -> list[Advice]:
    candidates = [standing for standing in answer.standings if standing.may_be_best] or [*answer.standings[:1]]
    unmeasured = answer.seeds < 2
    if not unmeasured and answer.verdict != "no clear winner":
        return []
    kind = _scarce(answer)
    used = {_seed(trial, kind) for standing in answer.standings for trial in standing.trials}
    fewest = min(len({_seed(trial, kind) for trial in standing.trials}) for standing in candidates)
    fresh = [str(max(used) + 1 + i) for i in range(max(2, min(fewest, 4)))]
    trials = [best_trial(standing) for standing in candidates]
    commands = [_sweep_command(sweep, trials[0], words) for words in _joined(candidates, trials, kind, fresh)]
    if unmeasured:
        every = all(len(standing.trials) == 1 for standing in answer.standings)
        text = f"{'The settings have' if every else 'Some settings have'} one seed, so seed noise is unmeasured: "
    else:
        text = "There is no clear winner: more seeds narrow the intervals. "
    what = "the setting that leads" if len(candidates) == 1 else f"the {len(candidates):,} settings that may be best"
    if len(commands) > MOST_COMMANDS:
        what = f"the best {MOST_COMMANDS} of {what}"
    text += f"{'run' if unmeasured else 'Run'} {what} with {listed(fresh)} as {'data ' * (kind != 'seed')}seeds too."
    return [Advice(text, tuple(commands[:MOST_COMMANDS]))]


def _go_on(sweep: Sweep) -> list[Advice]:
    """The sweep's own command, where trials have not ended and nobody is at it."""
    states = Counter(trial.state for trial in sweep.trials if trial.state in UNENDED)
    if not states or is_locked(sweep.path / "sweep.lock"):
        return []
    said = listed([counted(n, f"{state} trial") for state, n in states.items()])
    command = sweep.book.get("command")
    return [Advice(f"There {'is' if sum(states.values()) == 1 else 'are'} {said}. The sweep's own command goes on.", (str(command),) if command else ())]  # fmt: skip


def _joined(candidates: Sequence[Standing], trials: Sequence[Trial], kind: str, fresh: list[str]) -> list[list[str]]:
    """The words of one command for all candidates where they are a whole grid, else of one for each."""
    keys = [*candidates[0].axes]
    values = {key: [*dict.fromkeys(value_text(s.axes.get(key)) for s in candidates)] for key in keys}
    grid = {identity(dict(zip(keys, point, strict=True))) for point in product(*values.values())}
    if grid == {identity(standing.axes) for standing in candidates}:
        several = {key: [_word(t, key) for t in trials] for key in keys if len(values[key]) > 1}
        own = {key: [*dict.fromkeys(v)] for key, v in several.items()}
        return [_words(trials[0], own | _more(candidates[0], kind, fresh))]
    return [_words(t, _more(s, kind, fresh)) for s, t in zip(candidates, trials, strict=True)]


def _more(standing: Standing, kind: str, fresh: list[str]) -> dict[str, list[str]]:
    """New seeds of a kind, each with all that the setting has of the other kind."""
    others = {key: seeds for key, seeds in _seeds_of(standing).items() if key != kind and len(seeds) > 1}
    return others | {kind: fresh}


def _words(trial: Trial, changed: Mapping[str, Sequence[str]]) -> list[str]:
    """A trial's overrides with other values, several of which are a sweep."""
    left = dict(changed)
    words = []
    for word in trial.overrides:
        key = word.partition("=")[0]
        values = left.pop(key.lstrip("+"), None)
        words.append(word if values is None else f"{key}={','.join(values)}")
    return [*words, *(f"{key}={','.join(values)}" for key, values in left.items())]


def _word(trial: Trial, key: str) -> str:
    """An axis' value as the trial's command line has it."""
    for word in trial.overrides:
        name, _, value = word.partition("=")
        if name.lstrip("+") == key:
            return value
    return value_text(trial.axes.get(key))


def _seeds_of(standing: Standing) -> dict[str, list[str]]:
    """The seeds of a setting, so that a new one is compared seed by seed."""
    seeds = {key: [*dict.fromkeys(_word(t, key) for t in standing.trials)] for key in SEEDS}
    return {key: values for key, values in seeds.items() if any(key in t.axes for t in standing.trials)}


def _scarce(answer: Answer) -> str:
    """The kind of seed that there is least of among those that vary."""

    def count(kind: str) -> int:
        return min(len({_seed(trial, kind) for trial in standing.trials}) for standing in answer.standings)

    return min(varied(answer.standings) or ["seed"], key=count)


def _seed(trial: Trial, kind: str) -> int:
    config = trial.facts.get("config")
    known = values_of([kind], config, dict) if isinstance(config, Mapping) else {}
    return int(number_of((known | trial.axes).get(kind)) or 0)


def _sweep_command(sweep: Sweep, trial: Trial, words: Sequence[str]) -> str:
    """The line that adds trials to this sweep."""
    output = next((w.partition("=")[2] for w in trial.overrides if w.startswith("output_dir=")), "outputs")
    usual = expand(output) / "sweeps" / sweep.name
    where = f"sweep.name={sweep.name}" if _same(usual, sweep.path) else f"sweep.dir={short(sweep.path)}"
    return shlex.join(["python", "-m", "dpo_lab", "--multirun", *words, where])


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _allowed(tree: Any, key: str, value: float) -> bool:
    """Whether the configuration takes the value; where it is not known or older than its checks, it may."""
    changed = copy.deepcopy(tree)
    *nodes, last = key.split(".")
    node = changed
    for name in nodes:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node or not _valid(tree):
        return True
    node[last] = value
    return _valid(changed)


def _valid(tree: Any) -> bool:
    try:
        Config.model_validate(tree)
    except ValidationError:
        return False
    return True
