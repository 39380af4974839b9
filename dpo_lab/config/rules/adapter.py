"""Rules of lora and reference."""

from collections.abc import Iterable

from dpo_lab.config import inputs
from dpo_lab.config.schema import Config


def adapter(config: Config) -> Iterable[str]:
    """A rank without its scale."""
    if config.lora.r is not None and config.lora.alpha is None:
        yield f"lora.r={config.lora.r} needs lora.alpha. Start from an option that has both: lora=r8 lora.r=..."


def reference(config: Config) -> Iterable[str]:
    """The reference must be the start policy."""
    mode = config.reference.mode
    if mode in ("adapter_off", "adapter_copy") and config.lora.r is None:
        yield (
            f"reference.mode={mode} needs a LoRA policy, but lora.r=null. "
            "Use reference.mode=frozen or cached, or add lora=r8."
        )
    elif mode == "adapter_off" and config.init_from is not None:
        yield (
            "reference.mode=adapter_off cannot be used with init_from: with the adapter off the reference would be the "
            "base model, not the adapter that is continued. Use reference.mode=adapter_copy or cached."
        )
    elif mode == "adapter_copy" and config.init_from is None:
        yield (
            "reference.mode=adapter_copy needs init_from: without it there is no adapter to copy. "
            "Use reference.mode=adapter_off, which is the same reference."
        )


def start(config: Config) -> Iterable[str]:
    """A run to start from must be finished."""
    return inputs.finished_run(config.init_from) if config.init_from else []
