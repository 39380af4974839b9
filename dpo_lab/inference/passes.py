"""How a model's forward and backward passes are computed: the pack as it lies or padded rows, lean layers or not."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dpo_lab.config.schema import Config
from dpo_lab.models.lean import make_lean
from dpo_lab.preference.attention import takes_varlen
from dpo_lab.preference.forward import causal_lm
from dpo_lab.preference.sharing import share
from dpo_lab.runtime.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """What was chosen for a model.

    Attributes:
        shared: pairs are computed as they lie, each prompt once; else as padded rows.
        why: the reason where they are not.
        lean: modules whose passes are the lab's own, by kind.
    """

    shared: bool
    why: str | None
    lean: dict[str, int]

    def __str__(self) -> str:
        return "shared" if self.shared else f"padded: {self.why}"


def choose_passes(config: Config, model: nn.Module, compute: torch.dtype | None) -> Passes:
    """Make a loaded model compute as `trainer.forward` and `trainer.lean` say.

    Args:
        config: of the run.
        model: policy or reference, in eval mode.
        compute: dtype of the matrix products under autocast; None computes in the weights' own.

    Raises:
        ConfigError: trainer.forward=shared is asked for, and the model can't.
    """
    lean = dict(make_lean(model, compute)) if config.trainer.lean else {}
    if config.trainer.forward == "padded":
        return Passes(False, "trainer.forward=padded", lean)
    why = _asked_otherwise(config, causal_lm(model), compute)
    why = why or share(model, max_length=config.data.max_length, compute=compute)
    if why is not None and config.trainer.forward == "shared":
        raise ConfigError(f"trainer.forward=shared does not go with this model: {why}. Use trainer.forward=auto.")
    log.info("forward pass: %s; lean layers: %s", "shared" if why is None else f"padded, for {why}", lean or "none")
    return Passes(why is None, why, lean)


def _asked_otherwise(config: Config, lm: Any, compute: torch.dtype | None) -> str | None:
    """What speaks against the shared pass beside the model itself."""
    if config.model.attn not in ("auto", "sdpa"):
        return f"model.attn={config.model.attn} computes attention by itself"
    device, dtype = lm.device, compute or lm.dtype
    by_answer = device.type != "cpu" and not (device.type == "cuda" and takes_varlen(device, dtype))
    if by_answer and config.trainer.forward == "auto":
        return f"there is no attention kernel for unequal lengths on this device in {dtype}"
    return None
