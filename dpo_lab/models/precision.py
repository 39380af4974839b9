"""Dtypes of a run: of the weights in memory and of the matrix products."""

from dataclasses import dataclass

import torch

from dpo_lab.config.schema import Config
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.facts import auto_precision

NAMES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "64": torch.float64}
LIGHTNING = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "64": "64-true"}


@dataclass(frozen=True)
class Precision:
    """What `trainer.precision`, `model.dtype` and `quant.compute_dtype` come to on a device."""

    name: str  # 32, bf16, fp16 or 64
    weights: torch.dtype  # of the weights in memory, where they are not quantised
    quant_compute: torch.dtype  # of the products with 4-bit weights

    @property
    def autocast(self) -> torch.dtype | None:
        """Compute dtype under autocast; None computes in the weights' own."""
        return NAMES[self.name] if self.name in ("bf16", "fp16") else None

    @property
    def lightning(self) -> str:
        """Lightning's name of it."""
        return LIGHTNING[self.name]

    @property
    def tolerance(self) -> float:
        """Largest mean |log-ratio| per token by which two computations of one model may differ."""
        return 1e-5 if self.name in ("32", "64") else 2e-2

    def __str__(self) -> str:
        return {"32": "fp32", "64": "fp64"}.get(self.name, self.name)


def resolve_precision(config: Config, accelerator: str) -> Precision:
    """The dtypes on an accelerator: cpu, gpu or mps.

    LoRA keeps its frozen base in the compute dtype; full fine-tuning keeps fp32 weights and computes under autocast.
    """
    name = config.trainer.precision
    if name == "fp16_on_gpu":
        name = "fp16" if accelerator == "gpu" else "auto"
    if accelerator == "mps":
        name = "32"
    if name == "auto":
        name = auto_precision(accelerator)
    if name == "fp16" and accelerator == "cpu":
        raise ConfigError("trainer.precision=fp16 needs a GPU. Use trainer.precision=32, bf16, auto or fp16_on_gpu.")
    compute = NAMES[name]
    trained = torch.float32 if name in ("bf16", "fp16") and config.lora.r is None else compute
    weights = trained if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    quant = compute if config.quant.compute_dtype == "auto" else getattr(torch, config.quant.compute_dtype)
    return Precision(name, weights, quant)
