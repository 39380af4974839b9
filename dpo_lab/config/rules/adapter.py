"""Rules of lora."""

import re
from collections.abc import Iterable

from dpo_lab.config.names import did_you_mean
from dpo_lab.config.schema import Config

TARGET_KEYWORDS = ("all-linear", "attention")


def adapter(config: Config) -> Iterable[str]:
    """What an adapter needs, and what only an adapter has."""
    lora = config.lora
    if lora.r is None:
        yield from _without_adapter(config)
        return
    if lora.alpha is None:
        yield f"lora.r={lora.r} needs lora.alpha. Start from an option that has both: lora=r8 lora.r=..."
    if lora.init in ("pissa", "olora"):
        yield from _from_base(config)
    if lora.dora and config.quant.bits == 8:
        yield "lora.dora=true cannot be used with quant.bits=8, whose weights PEFT cannot read back. Use quant=4bit or none."
    yield from _targets(lora.target_modules)
    if "" in lora.modules_to_save:
        yield "lora.modules_to_save holds an empty name. Give names of modules, for example [lm_head], or [] for none."


def _without_adapter(config: Config) -> Iterable[str]:
    lora, optim = config.lora, config.optim
    asked = {
        f"lora.alpha={lora.alpha}": lora.alpha is not None,
        "lora.dora=true": lora.dora,
        "lora.rslora=true": lora.rslora,
        f"lora.init={lora.init}": lora.init != "default",
        f"lora.dropout={lora.dropout:g}": lora.dropout > 0,
        f"lora.target_modules={lora.target_modules}": lora.target_modules != "all-linear",
        f"lora.modules_to_save={lora.modules_to_save}": bool(lora.modules_to_save),
        f"optim.loraplus_ratio={optim.loraplus_ratio}": optim.loraplus_ratio is not None,
    }
    for word, given in asked.items():
        if given:
            yield f"{word} has no effect on full fine-tuning (lora.r=null). Drop it, or choose an adapter: lora=r8."


def _from_base(config: Config) -> Iterable[str]:
    lora = config.lora
    if config.quant.bits is not None:
        yield (
            f"lora.init={lora.init} needs the weights as they are, but quant.bits={config.quant.bits}: their decomposition "
            "would be that of the rounded weights. Use quant=none, or lora.init=default."
        )
    if lora.dora:
        yield (
            f"lora.init={lora.init} cannot be used with lora.dora=true: such a policy is no adapter of the untouched base, "
            "as final/ must be. Drop one of them."
        )


def _targets(wanted: str | list[str]) -> Iterable[str]:
    if not wanted or (isinstance(wanted, list) and "" in wanted):
        yield "lora.target_modules is empty or holds an empty name. Use all-linear, attention, or names such as [q_proj,v_proj]."
    elif isinstance(wanted, str) and wanted not in TARGET_KEYWORDS:
        try:
            re.compile(wanted)
        except re.error as e:
            yield f"lora.target_modules={wanted} is not a regular expression ({e}). Use all-linear, attention, or a list."
            return
        if re.fullmatch(r"[\w-]+", wanted):
            yield (
                f"lora.target_modules={wanted} is neither {' nor '.join(TARGET_KEYWORDS)}{did_you_mean(wanted, TARGET_KEYWORDS)}. "
                f"For the layers of that name write [{wanted}]; a regular expression must fit their whole path."
            )
