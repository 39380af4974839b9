"""What an export is held against: per-token log-probs of a few pairs, of the policy and of what was loaded back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.collate import collate
from dpo_lab.data.prepare import Split
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import Encoder
from dpo_lab.data.tokens import tokenise
from dpo_lab.inference.stage import Stage
from dpo_lab.models.locate import Located
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.errors import DataError

FULL = Precision("32", torch.float32, torch.float32)
CPU = torch.device("cpu")
SAME = 1e-5  # nats per token, on average, between two loadings of the same weights in fp32
MERGED = 1e-4  # and between an adapter beside its layers and in them
# Nats per token, on average, that rounding of the weights explains. In a run on SmolLM2-135M it was 0.002 in float16 and
# 0.03 in bfloat16.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2, "f32": 1e-4, "f16": 1e-2, "bf16": 6e-2, "q8_0": 1e-1}


@dataclass(frozen=True)
class Gap:
    """How far the log-probs of two models lie apart, in nats per token."""

    mean: float
    worst: float

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor) -> "Gap":
        """Of per-token log-probs (N,) of the same tokens."""
        apart = (ours.double() - theirs.double()).abs()
        return cls(apart.mean().item(), apart.max().item())

    def within(self, tolerance: float) -> bool:
        """Whether the mean is at most the tolerance; not a number never is."""
        return self.mean <= tolerance

    def __str__(self) -> str:
        return f"{self.mean:.2g} nats per token on average, {self.worst:.2g} at most"


def tolerance_of(config: Config, stored: str, policy: Precision) -> float:
    """Nats per token by which weights that are stored in a type may differ from the policy."""
    assert config.export is not None
    if config.export.tolerance is not None:
        return config.export.tolerance
    return ROUNDING[stored] + (policy.tolerance if policy.name in ("bf16", "fp16") else 0.0)


def check_pairs(config: Config, split: Split, template: Template) -> list[Layout]:
    """The first held-out pairs, each a layout of its own; training pairs where none are held out.

    Raises:
        DataError: no pair can be used.
    """
    assert config.export is not None
    encoder = Encoder(template, config.data.max_length, config.data.truncation)
    for pairs in (split.heldout, split.train):
        found = tokenise(pairs, encoder, expand(config.cache_dir), limit=config.export.check_pairs, workers=1).examples
        if len(found):
            return [collate([example], [i]) for i, example in enumerate(found)]
    raise DataError(
        "There is no pair to compare the export on. Give preference data: data=demo, or data=file data.path=FILE."
    )


@torch.no_grad()
def policy_logps(stage: Stage, name: str, layouts: Sequence[Layout]) -> Tensor:
    """Log-probs (N,) of the completion tokens under a result as it was trained."""
    forward = Forward(stage.precision.autocast)
    with stage.speaking(name) as model:
        return torch.cat([forward.logps(model, layout.to(stage.device)).float().cpu() for layout in layouts])


@torch.no_grad()
def plain_logps(model: Any, layouts: Sequence[Layout], compute: torch.dtype | None = None) -> Tensor:
    """The same under a model as transformers and PEFT run it, whole sequences in rows."""
    forward, device = Forward(compute, shared=False), next(model.parameters()).device
    model.eval()
    return torch.cat([forward.logps(model, layout.to(device)).float().cpu() for layout in layouts])


def plain_config(config: Config) -> Any:
    """conf/model for a folder that was exported: what it needs beyond its own files is nothing but trust."""
    rope = config.model.rope.model_copy(update={"type": "none", "factor": None})
    return config.model.model_copy(update={"rope": rope, "gradient_checkpointing": False, "attn": "auto"})


def reload(config: Config, folder: Any, name: str) -> Any:
    """A folder of weights in a fresh object, on the CPU in fp32."""
    from dpo_lab.models.load import load_model

    unquantised = config.quant.model_copy(update={"bits": None})
    return load_model(Located(folder, name), plain_config(config), unquantised, FULL, CPU)
