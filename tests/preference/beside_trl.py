"""TRL's own DPO trainer on the tiny model and pairs, and one step of it."""

from pathlib import Path
from typing import Any

import torch
from tiny import CHATML, byte_tokenizer, tiny_lora, tiny_pairs, trained
from torch import Tensor

from dpo_lab.data.types import Pair

# TRL trains on what a template puts after the end of a turn, too (ChatML's line break). This one puts nothing there.
NO_BREAK = CHATML.replace("<|im_end|>\\n", "<|im_end|>")


def trl_rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    """The pairs in TRL's conversational format."""
    return [
        {
            "prompt": [dict(m) for m in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]


def trl_trainer(
    folder: Path, output: Path, *, template: str = NO_BREAK, pairs: list[Pair] | None = None, **args: Any
) -> Any:
    """The trainer of a model folder with a fresh adapter, on `pairs` or the tiny ones."""
    import trl
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    disable_progress_bars()
    lora = tiny_lora()
    return trl.DPOTrainer(  # pyright: ignore[reportPrivateImportUsage]
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=trl.DPOConfig(  # pyright: ignore[reportPrivateImportUsage]
            output_dir=str(output),
            **{
                "max_length": 4096, "use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False,
                "per_device_train_batch_size": 8, "disable_tqdm": True, "seed": 0, "save_strategy": "no",
                "logging_strategy": "no",
            }
            | args,
        ),
        train_dataset=Dataset.from_list(trl_rows(pairs or tiny_pairs())),
        processing_class=byte_tokenizer(template),
        peft_config=LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),  # type: ignore[arg-type]
    )  # fmt: skip


def same_adapter(theirs: Any, ours: Any) -> None:
    """Copy our trainable weights into TRL's model."""
    weights = trained(theirs)
    assert weights.keys() == trained(ours).keys()
    with torch.no_grad():
        for name, parameter in trained(ours).items():
            weights[name].copy_(parameter)


def trl_step(trainer: Any, rows: list[int]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradients on the batch of its own collator."""
    trainer.model.train()
    trainer.model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in rows])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()} | {"loss": loss.item()}
    return metrics, {name: p.grad for name, p in trained(trainer.model).items() if p.grad is not None}
