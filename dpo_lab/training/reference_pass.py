"""The reference's log-probs before training: computed where they are not on disk, and checked against the policy."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from dpo_lab.data.collate import microbatches
from dpo_lab.data.module import step_pairs
from dpo_lab.data.types import Example
from dpo_lab.inference.setup import reference_tokens
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.ref_cache import answer_key
from dpo_lab.preference.reference import fill_cache
from dpo_lab.runtime.errors import Guarded, LabError, NoRoom
from dpo_lab.runtime.files import write_json
from dpo_lab.training.parts import Parts, RunContext

log = logging.getLogger(__name__)
BLOCK = 4096  # pairs that are in memory at a time

Place = tuple[Sequence[Example], int]


def fill_reference(run: RunContext, parts: Parts) -> None:
    """Compute the reference's log-probs that are not on disk yet; parallel runs wait for the one that computes."""
    if parts.reference.mode != "cached":
        return
    train, heldout = parts.data.train, parts.data.heldout
    places = [(train, row) for row in _trained_on(run, parts)] + [(heldout, row) for row in range(len(heldout))]
    keys = [[answer_key(e.prompt_ids, ids) for ids in (e.chosen_ids, e.rejected_ids)] for e in _at(places)]
    with parts.cache.filling(lambda: run.terminal.say("waiting for another run that computes the same reference")):
        for attempt in range(3):  # a damaged file may be found only by writing to it, and is then begun anew
            missing = set(parts.cache.missing(key for pair in keys for key in pair))
            todo = [place for place, pair in zip(places, keys, strict=True) if missing & set(pair)]
            if not todo:
                if attempt == 0:
                    run.terminal.say(f"reference: all {len(places)} pairs are in the cache")
                break
            _compute(run, parts, todo, len(places))
        else:
            raise LabError(f"The reference cache in {run.cache_dir} loses what is written to it. Check the disk.")
    if parts.cache.damaged:
        run.terminal.say(f"{parts.cache.damaged} damaged entries of the reference cache were computed again")


def _trained_on(run: RunContext, parts: Parts) -> Iterable[int]:
    """The training pairs that the run's steps come to."""
    n, size = len(parts.data.train), run.config.optim.batch_size
    if parts.steps * size >= n:
        return range(n)
    steps = (step_pairs(step, n, batch_size=size, seed=run.config.data.seed) for step in range(parts.steps))
    return sorted({row for rows in steps for row in rows})


def _at(places: Sequence[Place]) -> Iterator[Example]:
    return (examples[row] for examples, row in places)


def _compute(run: RunContext, parts: Parts, todo: Sequence[Place], total: int) -> None:
    with run.terminal.progress("reference", total, total - len(todo), unit="pairs") as bar:

        def on_batch(n: int) -> None:
            bar.advance(n)
            run.interrupt.check()

        tokens = reference_tokens(parts.tokens, parts.policy.config, parts.source.precision, parts.source.device)
        todo = _side_by_side(todo)
        for start in range(0, len(todo), BLOCK):
            tokens = _fill(parts, [*_at(todo[start : start + BLOCK])], tokens, on_batch)


def _side_by_side(todo: Sequence[Place]) -> list[Place]:
    """Pairs of one prompt together, in the order of their first, so that their prompt is computed once."""
    by_prompt: dict[bytes, list[Place]] = {}
    for place, example in zip(todo, _at(todo), strict=True):
        by_prompt.setdefault(answer_key(example.prompt_ids, ()), []).append(place)
    return [place for places in by_prompt.values() for place in places]


def _fill(parts: Parts, block: Sequence[Example], tokens: int, on_batch: Callable[[int], None]) -> int:
    """Compute the pairs of a block, the longest first; returns the tokens of a micro-batch that fits.

    Raises:
        NoRoom: a single pair does not fit into the GPU's memory.
    """
    source, left = parts.source, list(range(len(block)))
    while True:
        # A reference apart may not share, and padded rows hold no fewer tokens than the pack.
        shared = source.forward.shares(parts.policy) and not source.apart
        layouts = microbatches([block[i] for i in left], left, tokens=tokens, shared=shared)
        layouts.reverse()
        done = 0

        def counted(n: int) -> None:
            nonlocal done
            done += 1
            on_batch(n)

        try:
            fill_cache(parts.cache, layouts, parts.ref_model, source.forward, device=source.device, on_batch=counted)
        except torch.OutOfMemoryError as e:
            if len(layouts[done]) == 1:
                raise NoRoom(NO_ROOM) from e
        else:
            return tokens
        left = sorted(row for layout in layouts[done:] for row in layout.index)
        tokens = max(1, tokens // 2)
        if source.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "The GPU is out of memory in the reference pass: it goes on with micro-batches of %d tokens.", tokens
        )


def check_agreement(run: RunContext, parts: Parts) -> None:
    """Before the first update, in eval mode, policy and reference must be the same model, unless another was asked for."""
    if not (parts.reference.present and parts.source.is_start):
        return
    train = parts.data.train
    rows = step_pairs(0, len(train), batch_size=run.config.optim.batch_size, seed=run.config.data.seed)[:2]
    first = [train[row] for row in rows]
    shared = parts.forward.shares(parts.policy)
    layout = microbatches(first, rows, tokens=parts.tokens, shared=shared)[0].to(parts.device)
    parts.policy.eval()
    with torch.no_grad():
        gap = (parts.forward.logps(parts.policy, layout) - parts.reference.logps(layout)).abs().mean().item()
    rounding = max(parts.precision.tolerance, parts.source.precision.tolerance)
    limit = 2e-2 if run.config.quant.bits == 8 else rounding
    parts.facts["reference"]["start_gap"] = gap
    write_json(run.folder.facts, parts.facts)
    if not gap <= limit:
        raise Guarded(
            f"Before the first update policy and reference differ by {gap:.2e} nats per token on average (at most "
            f"{limit:.0e} is rounding), so rewards would be wrong from the start. Reference: {parts.source.what}, "
            f"reference.mode={parts.reference.mode}. Delete {run.cache_dir / 'reference'} if the weights of a "
            "folder were changed in place."
        )
    log.info("policy and reference agree to %.1e nats per token", gap)
