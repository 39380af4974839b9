"""The optimizer steps of a run, in this process: alone, or as one rank of several."""

from typing import Any

import lightning
import torch

from dpo_lab.config.schema import Config
from dpo_lab.data.module import PreferenceData, Steps
from dpo_lab.runtime.errors import LabError
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.module import PreferenceModule
from dpo_lab.training.parts import Parts
from dpo_lab.training.ranks import Ranks
from dpo_lab.training.setup import build_objective


def fit(
    config: Config,
    parts: Parts,
    folder: RunFolder,
    *,
    ranks: Ranks,
    resume: dict[str, Any] | None,
    callback: lightning.Callback,
) -> None:
    """The optimizer steps that are left.

    Args:
        config: of the run.
        parts: model, data and reference on this rank's device.
        folder: the run's.
        ranks: this process among those that train.
        resume: the checkpoint to go on from.
        callback: what happens around a step.

    Raises:
        LabError: the GPU's memory is too small.
    """
    done = resume["step"] if resume else 0
    module = PreferenceModule(
        parts.policy,
        parts.reference,
        parts.forward,
        build_objective(config),
        config.optim,
        total_steps=parts.steps,
        seed=config.seed,
        ranks=ranks,
    )
    if resume is not None:
        module.restore_trained(resume)
    if done == parts.steps:
        return
    steps = Steps(
        parts.data.train,
        start=done,
        end=parts.steps,
        batch_size=config.optim.batch_size,
        seed=config.data.seed,
        tokens=parts.tokens,
        rank=ranks.rank,
        ranks=ranks.size,
    )
    trainer = lightning.Trainer(
        accelerator=parts.accelerator,
        devices=[parts.device.index or 0] if parts.device.type == "cuda" else 1,
        precision=parts.precision.lightning,  # type: ignore[arg-type]
        max_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
        callbacks=[callback],
    )
    try:
        trainer.fit(module, datamodule=PreferenceData(steps, workers=2 if parts.device.type == "cuda" else 0))
    except torch.OutOfMemoryError as e:
        raise LabError(
            "The GPU is out of memory. Lower trainer.microbatch_tokens (the result stays the same), set "
            "model.gradient_checkpointing=true, or use quant=4bit."
        ) from e
