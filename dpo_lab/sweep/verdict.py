"""The verdict on a sweep and the sentence that says it, with its numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpo_lab.sweep.resampling import LEAST_PROMPTS
from dpo_lab.sweep.results import Trial
from dpo_lab.sweep.wording import SEEDS, counted, fixed, listed, percent, value_text

if TYPE_CHECKING:
    from dpo_lab.sweep.statistics import Interval, Standing

MOST_NAMES = 4


def judge(standings: Sequence["Standing"], contending: Sequence[bool], pairs: int, prompts: int) -> tuple[str, str]:
    """The verdict and its sentence.

    Args:
        standings: best first, at least one.
        contending: of each, whether the noise of the prompts alone leaves it in the race.
        pairs: held-out pairs.
        prompts: of these pairs.
    """
    first = standings[0]
    tied = [s for s in standings if first.accuracy - s.accuracy < 1e-9]
    members = [s for s in standings if s.may_be_best]
    alone = [s for s, races in zip(standings, contending, strict=True) if races and len(s.trials) == 1]
    counts = [] if pairs == prompts else [counted(prompts, "prompt")]
    on = f"{counted(pairs, 'held-out pair')} ({', '.join([*counts, _seeds(standings)])})"
    if len(standings) == 1:
        return "one setting", (
            f"There is one setting to look at and none to compare it with: {first.label}, {percent(first.accuracy)} of {on} "
            f"right (95 % interval {_between(first.accuracy_interval)} %), margin {fixed(first.margin)} nats."
        )
    if len(tied) > 1:
        return "no clear winner", _tie(members, tied, on) + _unmeasured(alone, standings)
    if alone:
        rivals = [s for s, races in zip(standings[1:], contending[1:], strict=True) if races]
        ahead = _ahead(first, rivals[0] if rivals else standings[1], on)
        if rivals:
            size = _too_few(prompts) or f" The noise between prompts alone leaves {_named(rivals)} in the race."
        else:
            size = f" That is more than the noise between prompts ({_gap(standings[1])})."
        return "leader", f"{first.label} leads with {ahead}.{size}{_unmeasured(alone, standings)}"
    if len(members) > 1:
        noise = _too_few(prompts) or " That is within the noise of prompts and seeds."
        ahead = _ahead(first, members[1], on)
        return "no clear winner", f"{_among(members)}: {first.label} has {ahead}.{noise}{_others(standings, members)}"
    ahead = f"{_ahead(first, standings[1], on)} ({_gap(standings[1])})"
    return "clear winner", f"{first.label} is the clear winner of {counted(len(standings), 'setting')}: {ahead}."


def varied(standings: Sequence["Standing"]) -> list[str]:
    """The kinds of seeds of which a setting has several."""
    seeds = {key: [{value_text(trial.axes.get(key)) for trial in s.trials} for s in standings] for key in SEEDS}
    return [key for key, met in seeds.items() if max(map(len, met), default=0) > 1]


def nothing(trials: Sequence[Trial]) -> str:
    """Why there is nothing to compare."""
    if not trials:
        return "Nothing to compare: the sweep has no trials yet."
    states = Counter("done without usable scores" if trial.state == "done" else trial.state for trial in trials)
    said = listed([f"{n:,} {state}" for state, n in states.items()])
    return f"Nothing to compare yet: of {counted(len(trials), 'trial')} none is done and scored ({said})."


def _tie(members: Sequence["Standing"], tied: Sequence["Standing"], on: str) -> str:
    """The highest accuracy is that of several settings."""
    if len(tied) < len(members):
        who = f"{_named(tied)} have the same accuracy, the highest,"
    else:
        who = f"{'both' if len(tied) == 2 else f'all {len(tied):,}'} have the same accuracy,"
    text = f"{_among(members)}: {who} {percent(tied[0].accuracy)} of {on} right."
    if tied[0].margin - tied[1].margin < 1e-9:
        return f"{text} Their margins are equal too."
    return (
        f"{text} {tied[0].label} has the largest margin, {fixed(tied[0].margin)} nats, before {fixed(tied[1].margin)}; "
        "margins decide nothing here."
    )


def _ahead(first: "Standing", rival: "Standing", on: str) -> str:
    return f"{percent(first.accuracy)} of {on} right, {_points(rival.behind)} more than {rival.label}"


def _unmeasured(alone: Sequence["Standing"], standings: Sequence["Standing"]) -> str:
    """What one seed leaves open, and what to do."""
    if not alone:
        return ""
    who = "each setting" if all(len(s.trials) == 1 for s in standings) else _named(alone)
    return f" Seed noise is unmeasured, as {who} ran with one seed: add seed=0,1,2 before naming a winner."


def _among(members: Sequence["Standing"]) -> str:
    return f"No clear winner among {_named(members)}"


def _named(standings: Sequence["Standing"]) -> str:
    """Up to four labels; semicolons between them where they hold commas themselves."""
    labels = [s.label for s in standings[:MOST_NAMES]]
    more = len(standings) - len(labels)
    labels += [f"{more:,} more"] if more else []
    if len(labels) > 2 and any("," in label for label in labels):
        return f"{'; '.join(labels[:-1])}; and {labels[-1]}"
    return listed(labels)


def _others(standings: Sequence["Standing"], members: Sequence["Standing"]) -> str:
    n = len(standings) - len(members)
    if n < 2:
        return " The other one is behind." if n else ""
    return f" The other {n:,} settings are behind."


def _too_few(prompts: int) -> str:
    """Empty where there are enough prompts to tell anything apart."""
    if prompts >= LEAST_PROMPTS:
        return ""
    return f" {counted(prompts, 'held-out prompt')} cannot tell settings apart, which takes {LEAST_PROMPTS} at least."


def _gap(second: "Standing") -> str:
    span = second.behind_interval
    low = f"{100 * span.low:.1f}" if span.low > 0 else "above 0"
    return f"95 % interval {low} to {100 * span.high:.1f} points, corrected for comparing all settings"


def _seeds(standings: Sequence["Standing"]) -> str:
    """`2 seeds each`; trials where two kinds of seeds vary, which are not as many draws."""
    word = "trial" if len(varied(standings)) > 1 else "seed"
    fewest, most = (f(len(s.trials) for s in standings) for f in (min, max))
    each = " each" if len(standings) > 1 else ""
    kinds = f" over {listed(varied(standings))}" if word == "trial" else ""
    return (counted(fewest, word) if fewest == most else f"{fewest} to {most} {word}s") + each + kinds


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _between(interval: "Interval") -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
