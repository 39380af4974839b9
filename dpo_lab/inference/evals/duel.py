"""Whose answers are better: reference and results answer the same prompts, and a judge or people compare them."""

import logging
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from dpo_lab.config.brought import REFERENCE, Subject
from dpo_lab.config.schema import Config
from dpo_lab.inference.evals.answering import answer_prompts, by_name_and_key
from dpo_lab.inference.evals.blind import Match
from dpo_lab.inference.evals.deciders import by_judge, by_people
from dpo_lab.inference.evals.duel_report import COUNTED
from dpo_lab.inference.evals.endpoint import Endpoint
from dpo_lab.inference.evals.ledger import Ledger
from dpo_lab.inference.evals.place import Place, data_facts, open_place
from dpo_lab.inference.evals.prompts import PromptRow, ask_for_prompts
from dpo_lab.inference.stage import Stage
from dpo_lab.runtime.errors import ConfigError, DataError, OutputError
from dpo_lab.runtime.files import file_lock, short, write_json
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)
Texts = dict[str, dict[str, str]]  # answers by the prompt's key and the name of who gave them


def duel(
    config: Config,
    tree: dict[str, Any],
    subjects: Sequence[Subject],
    stage_loader: Callable[[], Stage],
    terminal: Terminal,
) -> dict[str, float]:
    """Compare the answers of each two of reference and results.

    Answers and verdicts are kept as they come, so that the same command goes on; files of votes that lie in the
    evaluation's folder are counted.

    Args:
        config: with what the results bring along.
        tree: the same as plain containers.
        subjects: the results.
        stage_loader: loads the models; called where answers are missing.
        terminal: shows what is found.

    Returns:
        Win rates, named judge/A over B and people/A over B.

    Raises:
        ConfigError: there are no two to compare, or the judge cannot be asked.
        DataError: there are no prompts, or one of the user's own does not fit the model.
        JudgeError: the judge gives no verdicts.
        OutputError: the folder is another evaluation's, or in use.
    """
    assert config.evaluate is not None
    assert config.judge is not None
    if not subjects:
        raise ConfigError(
            "evaluate.task=duel compares results with their reference: give run=FOLDER or adapter=FOLDER."
        )
    endpoint = Endpoint.of(config.judge) if config.judge.base_url is not None else None
    place = open_place(config, subjects, _what(config, tree))
    if not place.done:
        place.note(done=False, task="duel")
    with file_lock(place.path / "duel.lock", wait=False) as held:
        if not held:
            raise OutputError(
                f"Another process works in {short(place.path)}. Wait for its end, or choose another output=."
            )
        return _compare(config, subjects, stage_loader, terminal, endpoint, place)


def _compare(
    config: Config,
    subjects: Sequence[Subject],
    stage_loader: Callable[[], Stage],
    terminal: Terminal,
    endpoint: Endpoint | None,
    place: Place,
) -> dict[str, float]:
    """Answer, ask people and judge, report."""
    assert config.judge is not None
    folder, names = place.path, (REFERENCE, *(s.name for s in subjects))
    rows = ask_for_prompts(config, terminal)
    texts = _answers(config, rows, names, Ledger(folder / "answers.jsonl"), stage_loader, terminal)
    matches = matches_of(rows, names, texts)
    terminal.header(
        f"{len(names)} contestants, {len(texts)} prompts",
        {REFERENCE: "before training"}
        | {s.name: str(short(s.path)) for s in subjects}
        | {"folder": str(short(folder))},
    )
    found = {"people": by_people(matches, folder, config.seed, terminal)}
    if endpoint is None:
        terminal.say("There is no judge (judge.base_url and judge.model name one), so that people alone decide.")
    elif any(not match.same for match in matches):
        found["judge"] = by_judge(config.judge, matches, endpoint, folder, terminal)
    parts = {name: part for name, part in found.items() if part is not None}
    if parts:
        terminal.say(COUNTED)
    report = {name: {**facts, "pairs": [s.to_json() for s in part]} for name, (part, facts) in parts.items()}
    write_json(
        folder / "duel.json",
        {
            "contestants": names,
            "prompts": len(texts),
            "left_out": len(rows) - len(texts),
            "same_answer": sum(match.same for match in matches),
            "generation": config.generation.model_dump() | {"seed": config.seed},
            "judge": None,
            "people": None,
        }
        | report,
    )
    place.note(done=True, task="duel")
    rates = {f"{name}/{s.what}": s.tally.rate for name, (part, _) in parts.items() for s in part}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _answers(
    config: Config,
    rows: Sequence[PromptRow],
    names: Sequence[str],
    ledger: Ledger,
    load: Callable[[], Stage],
    terminal: Terminal,
) -> Texts:
    """The answers to all prompts that fit the model, of which those in the ledger are not generated again."""
    known = by_name_and_key(ledger)
    if todo := [(name, row) for name in names for row in rows if (name, row.key) not in known]:
        answer_prompts(load(), todo, ledger, terminal, total=len(names) * len(rows))
        known = by_name_and_key(ledger)
    texts = {row.key: {name: known[name, row.key]["answer"] for name in names} for row in rows}
    fit = {key: said for key, said in texts.items() if None not in said.values()}
    if left_out := [row for row in rows if row.key not in fit]:
        why = known[REFERENCE, left_out[0].key]["left_out"]
        if config.prompts.own or not fit:
            raise DataError(f"{len(left_out)} of {len(rows)} prompts cannot be answered. The first: {why}")
        log.warning("%d of %d prompts are left out. The first: %s", len(left_out), len(rows), why)
    return fit


def matches_of(rows: Sequence[PromptRow], names: Sequence[str], texts: Texts) -> list[Match]:
    """Each two of the names on each prompt that all have answered; the later of two is first: it is held against the other."""
    return [
        Match(row.key, row.messages, (second, first), (texts[row.key][second], texts[row.key][first]))
        for first, second in combinations(names, 2)
        for row in rows
        if row.key in texts
    ]


def _what(config: Config, tree: dict[str, Any]) -> dict[str, Any]:
    """All that the answers depend on beside the results."""
    assert config.evaluate is not None
    asked = {"task": "duel", "split": config.evaluate.split, "max_prompts": config.evaluate.max_prompts}
    return data_facts(tree) | asked | {"generation": tree["generation"], "prompts": tree["prompts"]}
