"""The reference's log-probs before training: computed where they are not on disk, and checked against the policy."""

import logging
from collections.abc import Iterable

import torch

from dpo_lab.data.collate import microbatches
from dpo_lab.data.module import step_pairs
from dpo_lab.inference.reference_pass import ReferencePass
from dpo_lab.inference.setup import reference_tokens
from dpo_lab.runtime.errors import Guarded
from dpo_lab.runtime.files import write_json
from dpo_lab.training.parts import Parts, RunContext

log = logging.getLogger(__name__)


def fill_reference(run: RunContext, parts: Parts) -> None:
    """Compute the reference's log-probs that are not on disk yet; parallel runs wait for the one that computes."""
    if parts.reference.mode != "cached":
        return
    source, train, heldout = parts.source, parts.data.train, parts.data.heldout
    places = [(train, row) for row in _trained_on(run, parts)] + [(heldout, row) for row in range(len(heldout))]
    computed = ReferencePass(
        parts.cache,
        source,
        parts.ref_model,
        shared=source.forward.shares(parts.policy),
        tokens=lambda: reference_tokens(parts.tokens, parts.policy.config, source.precision, source.device),
        terminal=run.terminal,
        check=run.interrupt.check,
    ).fill(places)
    if not computed:
        run.terminal.say(f"reference: all {len(places)} pairs are in the cache")


def _trained_on(run: RunContext, parts: Parts) -> Iterable[int]:
    """The training pairs that the run's steps come to."""
    n, size = len(parts.data.train), run.config.optim.batch_size
    if parts.steps * size >= n:
        return range(n)
    steps = (step_pairs(step, n, batch_size=size, seed=run.config.data.seed) for step in range(parts.steps))
    return sorted({row for rows in steps for row in rows})


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
