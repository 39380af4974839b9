"""evaluate.task=predict: every model answers the same prompts, and what the answers are like."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from dpo_lab.config.brought import REFERENCE, Subject
from dpo_lab.config.schema import Config
from dpo_lab.data.gather import title
from dpo_lab.inference.evals.answering import Known, answer_prompts, by_name_and_key, tokens_per_second
from dpo_lab.inference.evals.ledger import Ledger
from dpo_lab.inference.evals.perplexity import fill_nats, perplexity
from dpo_lab.inference.evals.place import Place, data_facts, open_place
from dpo_lab.inference.evals.predict_report import show, write_page
from dpo_lab.inference.evals.prompts import PromptRow, ask_for_prompts
from dpo_lab.inference.evals.sureness import Additive, sureness
from dpo_lab.inference.evals.texts import Said, additive_numbers, check_packages, variety
from dpo_lab.inference.evals.words import is_chinese
from dpo_lab.inference.stage import Stage
from dpo_lab.runtime.errors import DataError, OutputError
from dpo_lab.runtime.files import file_lock, read_json, short, write_json
from dpo_lab.runtime.terminal import Terminal

PREDICTIONS, NATS, RESULT, PAGE, LOCK = (
    "predictions.jsonl", "perplexity.jsonl", "predict.json", "predict.html", "predict.lock"
)  # fmt: skip


def predict(
    config: Config,
    tree: dict[str, Any],
    subjects: Sequence[Subject],
    stage_loader: Callable[[], Stage],
    terminal: Terminal,
) -> dict[str, float]:
    """Let the reference and each result answer the prompts, and measure the answers.

    What an interrupted call has generated is not generated again.

    Args:
        config: with what the results bring along.
        tree: the same as plain containers.
        subjects: the results.
        stage_loader: loads them; called only if something is left to compute.
        terminal: shows progress and the table.

    Returns:
        The numbers as NAME/NUMBER.

    Raises:
        LabError: something the user can act on.
    """
    assert config.evaluate is not None
    if not config.prompts.own:
        check_packages()
    place = open_place(config, subjects, _what(config, tree))
    done = read_json(place.path / RESULT) if place.done else None
    if done is not None:
        terminal.say(f"evaluation {place.identity} is done; overwrite=true repeats it")
        show(terminal, done, place.path)
        return _flat(done)
    rows = ask_for_prompts(config, terminal)
    place.note(done=False, task="predict")
    with file_lock(place.path / LOCK, wait=False) as held:
        if not held:
            raise OutputError(f"{short(place.path)} is being written by another process. Wait for its end.")
        names = (REFERENCE, *(s.name for s in subjects))
        work = _Work(place, names, rows, stage_loader, terminal)
        said, nats = work.answers(), work.nats()
        result = _result(config, subjects, rows, said, nats)
        write_json(place.path / RESULT, result)
        write_page(place.path / PAGE, result, rows, said)
        place.note(done=True, task="predict")
    show(terminal, result, place.path)
    return _flat(result)


@dataclass(frozen=True)
class _Work:
    """What has to be computed, for every model and every prompt."""

    place: Place
    names: tuple[str, ...]
    rows: list[PromptRow]
    stage_loader: Callable[[], Stage]
    terminal: Terminal

    def answers(self) -> Known:
        """The answers, those that were there and those that were not."""
        return self._filled(PREDICTIONS, self.rows, answer_prompts)

    def nats(self) -> Known:
        """The log-probs of the chosen answers."""
        return self._filled(NATS, [row for row in self.rows if _has_chosen(row)], fill_nats)

    def _filled(self, file: str, rows: list[PromptRow], fill: Callable[..., None]) -> Known:
        ledger = Ledger(self.place.path / file)
        known = by_name_and_key(ledger)
        todo = [(name, row) for name in self.names for row in rows if (name, row.key) not in known]
        if todo:
            fill(self.stage_loader(), todo, ledger, self.terminal, total=len(self.names) * len(rows))
            known = by_name_and_key(ledger)
        return {(name, row.key): known[name, row.key] for name in self.names for row in rows}


def _what(config: Config, tree: dict[str, Any]) -> dict[str, Any]:
    """What the answers depend on, beside the results."""
    e, own = config.evaluate, config.prompts.own
    assert e is not None
    facts = data_facts(tree)
    pairs = {"data": facts["data"], "split": e.split} if not own else {}
    kept = {key: facts[key] for key in ("model", "quant", "template", "lora", "seed", "precision")}
    return kept | pairs | {
        "task": "predict",
        "own": own,
        "system": config.prompts.system,
        "max_prompts": e.max_prompts,
        "generation": config.generation.model_dump(),
    }  # fmt: skip


def _has_chosen(row: PromptRow) -> bool:
    return row.chosen is not None and bool(row.chosen.strip())


def _result(
    config: Config, subjects: Sequence[Subject], rows: Sequence[PromptRow], said: Known, nats: Known
) -> dict[str, Any]:
    """What predict.json says."""
    assert config.evaluate is not None
    answered = [row for row in rows if said[REFERENCE, row.key]["answer"] is not None]
    if not answered:
        why = said[REFERENCE, rows[0].key]["left_out"]
        raise DataError(f"None of the {len(rows)} prompts can be answered. The first: {why}")
    chosen = [row for row in answered if _has_chosen(row)]
    names = (REFERENCE, *(s.name for s in subjects))
    each = {name: _answered(name, answered, said, nats) for name in names}
    numbers = {name: own.additive() for name, own in each.items()}
    draws = config.evaluate.resamples
    sure = sureness(numbers, REFERENCE, prompts=len(answered), resamples=draws, seed=config.seed)
    return {
        "task": "predict",
        "title": "prompts.own" if config.prompts.own else f"{title(config.data)}, {config.evaluate.split}",
        "results": {s.name: str(s.path) for s in subjects},
        "prompts": len(answered),
        "left_out": [
            {"key": row.key, "why": said[REFERENCE, row.key]["left_out"]}
            for row in rows
            if said[REFERENCE, row.key]["answer"] is None
        ],
        "turns_cut": sum(said[REFERENCE, row.key]["dropped_turns"] > 0 for row in answered),
        "with_chosen": len(chosen),
        "read_as_chinese": sum(is_chinese(row.chosen or "") for row in chosen),
        "generation": config.generation.model_dump() | {"seed": config.seed, "batch_size": config.evaluate.batch_size},
        "packages": {name: version(name) for name in ("sacrebleu", "rouge-score", "jieba")} if chosen else {},
        "resamples": draws,
        "metrics": {name: own.metrics(numbers[name]) for name, own in each.items()},
    } | sure.to_json()


@dataclass(frozen=True)
class _Answered:
    """What one model said to the prompts that all could answer."""

    said: list[Said]
    nats: list[dict[str, Any] | None]
    speed: float

    def additive(self) -> dict[str, Additive]:
        """The numbers that have intervals."""
        found = additive_numbers(self.said)
        if any(row is not None and row["tokens"] for row in self.nats):
            found["perplexity"] = perplexity(self.nats)
        return found

    def metrics(self, additive: Mapping[str, Additive]) -> dict[str, float]:
        """All numbers."""
        values = {key: number.value for key, number in additive.items()}
        return values | variety(self.said) | {"tokens_per_second": self.speed}


def _answered(name: str, rows: Iterable[PromptRow], said: Known, nats: Known) -> _Answered:
    own = [(row, said[name, row.key]) for row in rows]
    return _Answered(
        [Said(a["answer"], a["ended"], a["tokens"], row.chosen if _has_chosen(row) else None) for row, a in own],
        [nats.get((name, row.key)) for row, _ in own],
        tokens_per_second([a for _, a in own]),
    )


def _flat(result: dict[str, Any]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, found in result["metrics"].items() for key, value in found.items()}
