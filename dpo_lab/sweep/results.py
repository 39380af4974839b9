"""A sweep folder as it is on disk: its trials, how far each came, and how it scored the held-out pairs.

Reading never fails on what is half written, torn or missing: a trial shows what can be read of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import read_json, short
from dpo_lab.sweep.axes import hydras_choices, hydras_tree, unnamed, values_of
from dpo_lab.sweep.pairs import Pairs, read_pairs, read_rows
from dpo_lab.sweep.state import number, state_of
from dpo_lab.sweep.wording import SEEDS, identity, listed

BOOK = "sweep.yaml"
# Any one of these makes a folder one of a run.
TRACES = ("trial.json", "status.json", "metrics.jsonl", "facts.json", "run.lock", ".hydra")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        id: name of the run folder.
        path: the run folder.
        number: order of the first start, from 0.
        axes: keys that a call of the sweep swept over, or that runs differ in, and this trial's values.
        overrides: the words that repeat the run.
        state: new, running, interrupted, done, failed or pruned.
        reason: why it ended so.
        kind: of a failure: oom, guard, disk, error or killed.
        step: the last one in metrics.jsonl.
        steps: of the whole run, where that is known.
        seconds: that a done run took.
        metrics: the last evaluation, `val/...`.
        rows: of metrics.jsonl.
        facts: facts.json.
        pairs: the last evaluation pair by pair.
    """

    id: str
    path: Path
    number: int
    axes: dict[str, Any]
    overrides: tuple[str, ...]
    state: str
    reason: str
    kind: str
    step: int
    steps: int | None
    seconds: float | None
    metrics: dict[str, float]
    rows: tuple[dict[str, Any], ...]
    facts: dict[str, Any]
    pairs: Pairs | None

    def seedless(self) -> dict[str, Any]:
        """The axes that make its setting: all but the seeds."""
        return {key: value for key, value in self.axes.items() if key not in SEEDS}


@dataclass(frozen=True)
class Sweep:
    """A sweep folder.

    Attributes:
        path: the folder.
        name: of the sweep.
        book: content of sweep.yaml; empty where that cannot be read.
        trials: in the order in which they were started.
    """

    path: Path
    name: str
    book: dict[str, Any]
    trials: tuple[Trial, ...]

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Each swept key and the values met: numbers by size, then words in the order met."""
        met: dict[str, dict[str, Any]] = {}
        for trial in self.trials:
            for key, value in trial.axes.items():
                met.setdefault(key, {}).setdefault(identity({key: value}), value)
        return {key: sorted(values.values(), key=_by_size) for key, values in met.items()}


def load(path: Path) -> Sweep:
    """Read a sweep folder.

    Args:
        path: of the folder.

    Raises:
        LabError: the folder is no sweep.
    """
    path = Path(path)
    folders = _run_folders(path)
    book = _read_book(path / BOOK)
    told = [read_json(folder / "trial.json") for folder in folders]
    if not (path / BOOK).is_file() and not any(isinstance(one, dict) for one in told):
        raise LabError(_no_sweep(path))
    swept = book.get("axes")
    axes = swept if isinstance(swept, dict) else {}
    trials = [
        _read_trial(folder, one if isinstance(one, dict) else {}, axes)
        for folder, one in zip(folders, told, strict=True)
    ]
    fixed = book.get("fixed")
    trials = _with_all_axes(trials, axes, fixed if isinstance(fixed, dict) else {})
    trials.sort(key=lambda trial: (trial.number < 0, trial.number, trial.id))
    return Sweep(path, str(book.get("name") or path.name), book, tuple(trials))


def _run_folders(path: Path) -> list[Path]:
    """What lies in the folder and looks like a run; `winner` is a link, so it does not."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return []
    inside = [entry for entry in entries if not entry.name.startswith(".") and not entry.is_symlink()]
    return [entry for entry in inside if any((entry / trace).exists() for trace in TRACES)]


def _no_sweep(path: Path) -> str:
    name = short(path)
    if not path.exists():
        near = sorted(p.parent.name for p in path.parent.glob(f"*/{BOOK}"))
        advice = f"There are {listed(near[:8])}." if near else "A --multirun makes one."
        return f"There is no sweep {name}. {advice}"
    if not path.is_dir():
        return f"{name} is a file, not the folder of a sweep. Give the folder that holds {BOOK}."
    if any((path / trace).exists() for trace in TRACES):
        inside = f" It belongs to the sweep {short(path.parent)}." if (path.parent / BOOK).is_file() else ""
        return f"{name} is the folder of a single run, not of a sweep.{inside}"
    if near := sorted(p.parent.name for p in path.glob(f"*/{BOOK}")):
        return f"{name} is not a sweep itself: it holds {listed(near[:8])}. Choose one with sweep.dir={name / near[0]}."
    return f"{name} is no sweep: it has no {BOOK} and no trials. Give a folder that --multirun made."


def _read_book(path: Path) -> dict[str, Any]:
    try:
        book = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return book if isinstance(book, dict) else {}


def _read_trial(folder: Path, told: Mapping[str, Any], swept: Mapping[str, Any]) -> Trial:
    axes, overrides = told.get("axes"), told.get("overrides")
    if not isinstance(axes, dict) or not isinstance(overrides, list):
        overrides = _own_words(folder)
        axes = _axes_of(overrides, swept)
    state, status = state_of(folder), read_json(folder / "status.json")
    facts = read_json(folder / "facts.json")
    facts = facts if isinstance(facts, dict) else {}
    rows = tuple(row for row in read_rows(folder / "metrics.jsonl") if _is_whole(row.get("step")))
    last = next((row for row in reversed(rows) if any(name.startswith("val/") for name in row)), {})
    seconds = status.get("seconds") if isinstance(status, dict) and state.name == "done" else None
    first = told.get("number")
    return Trial(
        id=folder.name,
        path=folder,
        number=first if isinstance(first, int) else -1,
        axes=axes,
        overrides=tuple(str(word) for word in overrides),
        state=state.name,
        reason=state.reason,
        kind=state.kind,
        step=max((row["step"] for row in rows), default=0),
        steps=facts["steps"] if _is_whole(facts.get("steps")) else None,
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        metrics={name: number(value) for name, value in last.items() if name.startswith("val/")},
        rows=rows,
        facts=facts,
        pairs=read_pairs(folder / "eval_pairs.jsonl"),
    )


def _with_all_axes(trials: Sequence[Trial], swept: Iterable[str], fixed: Iterable[str]) -> list[Trial]:
    """The trials with their values of all axes of the sweep, whatever the call that started them swept over."""
    keys = [*dict.fromkeys([*map(str, swept), *(key for trial in trials for key in trial.axes)])]
    trees = {trial.id: config if isinstance(config := trial.facts.get("config"), dict) else {} for trial in trials}
    trials = [_completed(trial, keys, trees[trial.id]) for trial in trials]
    settings: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        settings.setdefault(identity(trial.seedless()), []).append(trees[trial.id])
    more = unnamed(settings.values(), fixed)
    return [_completed(trial, [*keys, *more], trees[trial.id]) for trial in trials] if more else trials


def _completed(trial: Trial, keys: Sequence[str], tree: Mapping[str, Any]) -> Trial:
    missing = [key for key in keys if key not in trial.axes]
    if not missing:
        return replace(trial, axes={key: trial.axes[key] for key in keys})
    known = values_of(missing, tree or hydras_tree(trial.path), lambda: hydras_choices(trial.path)) | trial.axes
    return replace(trial, axes={key: known[key] for key in keys if key in known})


def _own_words(folder: Path) -> list[str]:
    """The overrides that Hydra noted, without those of the sweep; for a trial whose trial.json is lost."""
    try:
        words = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    words = [str(word) for word in words] if isinstance(words, list) else []
    return [word for word in words if not word.lstrip("+~").startswith(("sweep.", "hydra."))]


def _axes_of(words: Sequence[str], swept: Mapping[str, Any]) -> dict[str, Any]:
    """The swept keys among a trial's words, with the value that sweep.yaml has for them."""
    axes: dict[str, Any] = {}
    for word in words:
        key, _, text = word.lstrip("+").partition("=")
        values = swept.get(key)
        if isinstance(values, list):
            known = [value for value in values if identity({key: value}) == identity({key: _value(text)})]
            axes[key] = known[0] if known else _value(text)
    return {key: axes[key] for key in swept if key in axes}


def _value(text: str) -> Any:
    """A word of the command line as a value. YAML alone takes 1e-4 for text."""
    try:
        value = float(text) if not text.lstrip("-").isdigit() else int(text)
        return value if math.isfinite(value) else text
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _by_size(value: Any) -> tuple[bool, float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return False, float(value)
    return True, 0.0
