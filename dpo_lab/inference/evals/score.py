"""`evaluate.task=score`: preference pairs under one or many results and their reference. Nothing is trained or written."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from dpo_lab.config.brought import REFERENCE, Subject
from dpo_lab.config.schema import Config, Loss
from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.types import Example
from dpo_lab.inference import setup
from dpo_lab.inference.evals.compare import compare
from dpo_lab.inference.evals.lengths import data_lengths
from dpo_lab.inference.evals.measured import Yardstick, fill, model_for_kl, yardstick
from dpo_lab.inference.evals.pairs import Scored, pairs_to_score
from dpo_lab.inference.evals.place import METRICS, RECORDS, Place, data_facts, open_place
from dpo_lab.inference.evals.score_page import write_page
from dpo_lab.inference.evals.score_report import Report, show
from dpo_lab.inference.evals.seen import seen_by
from dpo_lab.inference.evals.standing import Standing, of_reference, standing_of
from dpo_lab.inference.references import reference_mode
from dpo_lab.inference.scoring import Scorer
from dpo_lab.inference.stage import Stage
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.reference import CachedReference, NoReference, Reference
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import read_json, read_jsonl, short, write_json, write_jsonl
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)
SCORES, PAGE = "scores.json", "report.html"


def score(
    config: Config,
    tree: dict[str, Any],
    subjects: Sequence[Subject],
    stage_loader: Callable[[], Stage],
    terminal: Terminal,
    given: Collection[str] = (),
) -> dict[str, float]:
    """Reward accuracy, margins, loss and KL of every result; tables, JSON and a page in the evaluation's folder.

    Args:
        config: with what the results bring along.
        tree: the same as plain containers.
        subjects: the results.
        stage_loader: returns the base with the results on it; not asked where nothing is left to score.
        terminal: shows the table.
        given: keys and groups of the command line.

    Returns:
        NAME/METRIC of every result.

    Raises:
        LabError: the pairs cannot be read, or do not fit into the memory.
    """
    asked = config.evaluate
    assert asked is not None
    own_loss = not any(key.partition(".")[0] == "loss" for key in given)
    check_references(config, subjects, given)
    losses = [_own(config, s, own_loss).loss.model_dump(by_alias=True) for s in subjects]
    settings = {
        "task": "score",
        "split": asked.split,
        "resamples": asked.resamples,
        "kl_pairs": config.trainer.kl_pairs,
    }
    place = open_place(config, subjects, data_facts(tree) | settings | {"losses": losses})
    if place.done:
        terminal.say(f"This evaluation is done: {short(place.path)}. Repeat it with overwrite=true.")
        return _again(place, terminal)
    begun = time.monotonic()
    stage = stage_loader()
    found = pairs_to_score(config, stage.template)
    place.note(done=False, task="score")
    measure = yardstick(stage, terminal)
    computed = fill(measure, stage, found.examples, terminal)
    log.info("reference ready: %d of %d pairs computed", computed, len(found.examples))
    seen = {s.name: seen_by(config, s, found.examples, stage.template) for s in subjects}
    standings = []
    for subject in subjects:
        folder = place.of(subject)
        known = _known(folder, subject, found)
        if known is None:
            known = _score(_own(config, subject, own_loss), stage, subject, measure, found, terminal)
            write_jsonl(folder / RECORDS, known.records)
            write_json(folder / METRICS, known.metrics)  # last: it says that the records are there
        standings.append(known)
    values = {s.name: s.values for s in standings}
    compared = compare(values, found.prompts, resamples=asked.resamples, seed=config.seed, reference=REFERENCE)
    report = Report.of(
        place=place,
        config=config,
        reference=of_reference(measure.cache, found) | {"what": measure.what, "computed": computed},
        standings=standings,
        compared=compared,
        lengths=data_lengths(found.examples),
        found=found,
        seen=seen,
        model=stage.start.located.name,
        seconds=time.monotonic() - begun,
    )
    write_json(place.path / SCORES, report.content)
    write_page(place.path / PAGE, report.content, standings, found)
    place.note(done=True, task="score")
    show(report.content, place.path, terminal)
    return report.metrics()


def check_references(config: Config, subjects: Sequence[Subject], given: Collection[str]) -> None:
    """Results are held against one reference, so they must have been trained against the same.

    Raises:
        ConfigError: they were not, and the command line does not say which one is meant.
    """
    if any(key.partition(".")[0] == "reference" for key in given):
        return
    first = config.reference
    for subject in subjects:
        theirs = (subject.recorded or {}).get("reference") or {}
        for key in ("path", "quant", "dtype"):
            if key in theirs and theirs[key] != getattr(first, key):
                raise ConfigError(
                    f"{subject.path} was trained against another reference (reference.{key}={theirs[key]}) than "
                    f"{subjects[0].path} (reference.{key}={getattr(first, key)}). Say which one all are measured against, "
                    f"reference.{key}={getattr(first, key) or 'null'}, or give them to calls of their own."
                )


def _own(config: Config, subject: Subject, own_loss: bool) -> Config:
    """The configuration with the loss that a result was trained with, unless the command line names one for all."""
    recorded = subject.recorded
    if not own_loss or not recorded:
        return config
    mode = (recorded.get("reference") or {}).get("mode", config.reference.mode)
    loss = Loss.model_validate(
        {**config.loss.model_dump(include=set(Loss.model_fields) - {"target"}), **recorded["loss"]}
    )
    return config.model_copy(update={"loss": loss, "reference": config.reference.model_copy(update={"mode": mode})})


def _score(
    config: Config, stage: Stage, subject: Subject, measure: Yardstick, found: Scored, terminal: Terminal
) -> Standing:
    """The scores of one result, in the micro-batches that training evaluates in."""
    with stage.speaking(subject.name) as policy:
        scorer, reference = _scorer(config, stage, policy, subject.name, measure, found.examples)
        with terminal.progress(subject.name, len(scorer), unit="pairs") as bar:
            scores = scorer.score(policy, bar.advance)
    rows = [{"prompt": found.prompts[row["index"]]} | row for row in scores.records]
    return standing_of(
        subject, scores.metrics, rows, measure.cache, found, present=reference.present, average=config.loss.average
    )


def _scorer(
    config: Config, stage: Stage, policy: Any, name: str, measure: Yardstick, examples: Sequence[Example]
) -> tuple[Scorer, Reference]:
    objective = setup.build_objective(config)
    forward = Forward(stage.precision.autocast)
    shared = forward.shares(policy)
    tokens = 2 * setup.microbatch_tokens(config, causal_lm(policy).config, stage.precision, stage.device)
    model = model_for_kl(measure, stage, name) if config.trainer.kl_pairs else None
    reference: Reference = CachedReference(measure.cache, model)
    if reference_mode(config) == "none":
        reference = NoReference()
        reference.model = model  # rewards know no reference, but the KL does
    n = min(config.trainer.kl_pairs if model else 0, len(examples))

    def cut(rows: range) -> list[Layout]:
        return microbatches([examples[i] for i in rows], list(rows), tokens=tokens, shared=shared) if rows else []

    def halves(layout: Layout) -> list[Layout]:
        middle = len(layout) // 2
        return [collate([examples[i] for i in rows], rows) for rows in (layout.index[:middle], layout.index[middle:])]

    scorer = Scorer(
        cut(range(n, len(examples))),
        kl_layouts=cut(range(n)),
        forward=forward,
        reference_forward=measure.forward,
        reference=reference,
        objective=objective,
        device=stage.device,
        halves=halves,
    )
    return scorer, reference


def _known(folder: Path, subject: Subject, found: Scored) -> Standing | None:
    """What an earlier call that was interrupted found of a result."""
    metrics, records = read_json(folder / METRICS), read_jsonl(folder / RECORDS)
    if not isinstance(metrics, dict) or len(records) != len(found.examples):
        return None
    return Standing(subject.name, str(subject.path), metrics, records)


def _again(place: Place, terminal: Terminal) -> dict[str, float]:
    """What an earlier call found."""
    content = read_json(place.path / SCORES)
    show(content, place.path, terminal)
    return Report(content).metrics()
