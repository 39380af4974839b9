"""Objectives as conf/ ships them, and random steps to put through them."""

from functools import cache
from typing import Any

import torch
from composing import composed

from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Config
from dpo_lab.inference.setup import build_objective
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.objective import Objective, PairLogps

LOSSES = sorted(file.stem for file in (CONF_DIR / "loss").glob("*.yaml"))


@cache
def config(*words: str) -> Config:
    """The config of a run; composing takes 0.2 s."""
    return composed(*words)


def objective(*words: str, **changes: Any) -> Objective:
    """What a run with these words on its command line minimises; `changes` of keys of loss come on top."""
    made = config(*words)
    return build_objective(made.model_copy(update={"loss": made.loss.model_copy(update=changes)}))


def random_step(objective: Objective, *, pairs: int = 8, seed: int = 0, moved: float = 4.0) -> tuple[Layout, PairLogps]:
    """Answers of 1 to 12 tokens in fp64; `moved` is how far, per token, the policy has come from the reference."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (pairs, 2), generator=generator).tolist()
    layout = Layout(torch.arange(sum(2 + c + r for c, r in lengths)), tuple((2, c, r) for c, r in lengths))
    size = sum(c + r for c, r in lengths)
    ref = -2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1.5
    policy = ref + moved * (torch.rand(size, generator=generator, dtype=torch.float64) - 0.4)
    log_sum_sq = -2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1.0
    return layout, objective.pairs(layout, policy, ref, log_sum_sq)


def gradient(objective: Objective, pairs: PairLogps) -> torch.Tensor:
    """d mean loss / d policy log-probs: (2B,), chosen and then rejected; (4B,) where the tails count."""
    leaves = pairs.leaf()
    asked = [leaves.chosen_logps, leaves.rejected_logps]
    asked += [t for t in (leaves.chosen_tail_logps, leaves.rejected_tail_logps) if t is not None]
    found = torch.autograd.grad(objective(leaves).mean(), asked, allow_unused=True)
    return torch.cat([torch.zeros_like(t) if g is None else g for t, g in zip(asked, found, strict=True)])
