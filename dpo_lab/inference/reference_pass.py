"""The reference's log-probs that are not on disk yet: computed once, by one process, in micro-batches that fit."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dpo_lab.data.collate import microbatches
from dpo_lab.data.types import Example
from dpo_lab.inference.references import Source
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.ref_cache import RefCache, answer_key
from dpo_lab.preference.reference import ModelContext, fill_cache
from dpo_lab.runtime.errors import LabError, NoRoom
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)
BLOCK = 4096  # pairs that are in memory at a time

Place = tuple[Sequence[Example], int]  # a pair, by the split it is in and its row


@dataclass(frozen=True)
class ReferencePass:
    """A pass of a reference over pairs.

    Attributes:
        cache: where its log-probs are kept.
        source: which model it is.
        model: it; opening may mean loading.
        shared: whether the policy's passes compute a prompt once. A reference apart may not.
        tokens: how many a micro-batch may have; asked where something is missing.
        terminal: shows how far it is.
        check: called after each micro-batch; may raise to stop.
    """

    cache: RefCache
    source: Source
    model: ModelContext
    shared: bool
    tokens: Callable[[], int]
    terminal: Terminal
    check: Callable[[], None] = lambda: None

    def fill(self, places: Sequence[Place]) -> int:
        """Compute what is missing; returns of how many pairs. Others who want the same wait.

        Raises:
            LabError: the cache loses what is written to it.
            NoRoom: a single pair does not fit into the GPU's memory.
        """
        keys = [[answer_key(e.prompt_ids, ids) for ids in (e.chosen_ids, e.rejected_ids)] for e in _at(places)]
        computed = 0
        with self.cache.filling(lambda: self.terminal.say("waiting for another run that computes the same reference")):
            for _ in range(3):  # a damaged file may be found only by writing to it, and is then begun anew
                missing = set(self.cache.missing(key for pair in keys for key in pair))
                todo = [place for place, pair in zip(places, keys, strict=True) if missing & set(pair)]
                if not todo:
                    break
                computed += len(todo)
                self._compute(_side_by_side(todo), len(places))
            else:
                raise LabError(f"The reference cache {self.cache.path} loses what is written to it. Check the disk.")
        if self.cache.damaged:
            self.terminal.say(f"{self.cache.damaged} damaged entries of the reference cache were computed again")
        return computed

    def _compute(self, todo: Sequence[Place], total: int) -> None:
        with self.terminal.progress("reference", total, total - len(todo), unit="pairs") as bar:

            def on_batch(n: int) -> None:
                bar.advance(n)
                self.check()

            tokens = self.tokens()
            for start in range(0, len(todo), BLOCK):
                tokens = self._block([*_at(todo[start : start + BLOCK])], tokens, on_batch)

    def _block(self, block: Sequence[Example], tokens: int, on_batch: Callable[[int], None]) -> int:
        """Compute the pairs of a block, the longest first; returns the tokens of a micro-batch that fits."""
        source, left = self.source, list(range(len(block)))
        while True:
            # Padded rows hold no fewer tokens than the pack.
            shared = self.shared and not source.apart
            layouts = microbatches([block[i] for i in left], left, tokens=tokens, shared=shared)
            layouts.reverse()
            done = 0

            def counted(n: int) -> None:
                nonlocal done
                done += 1
                on_batch(n)

            try:
                fill_cache(self.cache, layouts, self.model, source.forward, device=source.device, on_batch=counted)
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


def _at(places: Sequence[Place]) -> Iterator[Example]:
    return (examples[row] for examples, row in places)


def _side_by_side(todo: Sequence[Place]) -> list[Place]:
    """Pairs of one prompt together, in the order of their first, so that their prompt is computed once."""
    by_prompt: dict[bytes, list[Place]] = {}
    for place, example in zip(todo, _at(todo), strict=True):
        by_prompt.setdefault(answer_key(example.prompt_ids, ()), []).append(place)
    return [place for places in by_prompt.values() for place in places]
