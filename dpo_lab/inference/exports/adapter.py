"""format=adapter: the PEFT folder as it is, and what it may lack: tokenizer, chat template, model card."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch import device as Device

from dpo_lab.config.schema import Config
from dpo_lab.data.templates import Template
from dpo_lab.inference.exports.check import ROUNDING, plain_logps
from dpo_lab.inference.start import Start
from dpo_lab.models.load import load_model
from dpo_lab.models.locate import VOCABULARIES
from dpo_lab.models.lora import attached_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.layout import Layout


def write_adapter(result: Path, template: Template, folder: Path) -> None:
    """Copy an adapter's folder; the base that its configuration names stays."""
    shutil.copytree(result, folder, copy_function=shutil.copyfile)
    has_tokenizer = any(file for pattern in VOCABULARIES for file in folder.glob(pattern))
    if not has_tokenizer or not (folder / "chat_template.jinja").is_file():
        with quiet_loading():
            template.tokenizer.save_pretrained(folder)


def adapter_logps(
    config: Config, start: Start, precision: Precision, device: Device, folder: Path, layouts: Sequence[Layout]
) -> Tensor:
    """Log-probs under a fresh base, loaded as the run loaded it, with the adapter of a folder."""
    base = load_model(
        start.located,
        config.model,
        config.quant,
        precision,
        device,
        max_length=config.data.max_length,
    )
    return plain_logps(attached_adapter(base, folder), layouts, precision.autocast)


def adapter_tolerance(config: Config, precision: Precision) -> float:
    """Nats per token between two loadings of one adapter; 8-bit products depend on the rows beside them."""
    assert config.export is not None
    if config.export.tolerance is not None:
        return config.export.tolerance
    inexact = config.quant.bits == 8 or precision.name in ("bf16", "fp16")
    return 2e-2 if inexact else ROUNDING["float32"]
