"""format=merged: the adapter's weights added to those of the unquantised base."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_lab.config.brought import Subject
from dpo_lab.config.schema import Config
from dpo_lab.data.templates import Template
from dpo_lab.inference.exports.check import CPU, FULL, MERGED, Gap, plain_logps, reload
from dpo_lab.inference.exports.disk import disk_errors
from dpo_lab.inference.start import Start
from dpo_lab.models.load import load_model
from dpo_lab.models.lora import attached_adapter
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.errors import ConfigError, ModelError
from dpo_lab.runtime.files import read_json


def check_base(config: Config, given: Iterable[str], start: Start, what: str) -> None:
    """Nothing is merged into quantised weights: they would be rounded once more, to steps far wider than the update.

    Raises:
        ConfigError: the command line asks for it.
        ModelError: there are no other weights.
    """
    if config.quant.bits is not None and any(key == "quant" or key.startswith("quant.") for key in given):
        raise ConfigError(
            f"format={what} merges the adapter into the unquantised base, also after training in {config.quant.bits} bit, "
            f"but quant={config.quant.bits}bit is given. Drop it; or use format=adapter, which goes with a quantised base."
        )
    stored = (read_json(start.located.path / "config.json") or {}).get("quantization_config")
    if stored:
        raise ModelError(
            f"The weights of {start.located.name} are quantised themselves ({stored.get('quant_method', 'unknown')}), and "
            f"nothing can be merged into them. Use format=adapter, or give the unquantised model with model=."
        )


def merge(config: Config, subject: Subject, start: Start, layouts: Sequence[Layout]) -> tuple[Any, Tensor]:
    """The result as one model, on the CPU in fp32, and its log-probs (N,) before the adapter was merged.

    An adapter is merged as PEFT merges it, and the log-probs must stay.

    Raises:
        ModelError: the adapter does not fit, cannot be merged, or makes weights that are no numbers.
    """
    if subject.whole:
        model = reload(config, subject.result, subject.name)
        return model, plain_logps(model, layouts)
    unquantised = config.quant.model_copy(update={"bits": None})
    base = load_model(start.located, config.model, unquantised, FULL, CPU, max_length=config.data.max_length)
    peft = attached_adapter(base, subject.result)
    before = plain_logps(peft, layouts)
    try:
        with quiet_loading():
            model = peft.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise ModelError(f"The adapter in {subject.result} cannot be merged: {reason}. Use format=adapter.") from e
    model.requires_grad_(False).eval()
    gap = Gap.of(plain_logps(model, layouts), before)
    if not gap.within(MERGED):
        raise ModelError(
            f"Merging the adapter in {subject.result} changes what it computes ({gap}), so PEFT does not merge adapters of "
            "its kind exactly. Use format=adapter."
        )
    return model, before


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Give the parameters a dtype; buffers, such as rotary frequencies, keep theirs, as when a model is loaded."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def write_merged(model: Any, template: Template, folder: Path, *, shard_size: int) -> None:
    """Weights, configuration, tokenizer with the run's chat template, and how to end an answer."""
    model.config.use_cache = True
    end_answers(model.generation_config, template)
    with quiet_loading(), disk_errors():
        model.save_pretrained(folder, max_shard_size=shard_size)
        template.tokenizer.save_pretrained(folder)


def end_answers(generation: Any, template: Template) -> None:
    """Let generation stop at the template's end of turn; the base may know an end of text alone."""
    known = generation.eos_token_id
    ends = known if isinstance(known, list) else [] if known is None else [known]
    wanted = [template.end_of_turn[-1], *(end for end in ends if end != template.end_of_turn[-1])]
    generation.eos_token_id = wanted if len(wanted) > 1 else wanted[0]
    sampled = (generation.temperature, generation.top_p, generation.top_k)
    if not generation.do_sample and any(value not in (None, 1.0, 50) for value in sampled):
        generation.do_sample = True  # some bases say how to sample but not to; transformers refuses to save that
